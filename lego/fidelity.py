"""How close a merge is to the exact sum D = Σ_j w_j s_j B_j A_j, from inner products of units alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Fidelity:
    """Squared norms and the inner product, per module, fp64 (M,): enough for every measure, and they add up over modules.

    A cosine cannot see a wrong strength, so it never stands without the norm ratio.

    Attributes:
        merged, target: ‖ΔW‖_F² and ‖D‖_F².
        inner: <ΔW, D>.
        error: ‖ΔW − D‖_F².
    """

    merged: Float[Tensor, " modules"]
    target: Float[Tensor, " modules"]
    inner: Float[Tensor, " modules"]
    error: Float[Tensor, " modules"]

    @classmethod
    def joined(cls, parts: list[Fidelity]) -> Fidelity:
        """The same over the modules of all parts."""
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))

    def total(self) -> Fidelity:
        """All modules together, as one long vector."""
        return Fidelity(
            self.merged.sum()[None], self.target.sum()[None], self.inner.sum()[None], self.error.sum()[None]
        )

    @property
    def relative_error(self) -> Float[Tensor, " modules"]:
        """‖ΔW − D‖ / ‖D‖; against a D of zero, 0 for a merge of zero and infinite otherwise."""
        return ratio(self.error.sqrt(), self.target.sqrt())

    @property
    def norm_ratio(self) -> Float[Tensor, " modules"]:
        """‖ΔW‖ / ‖D‖."""
        return ratio(self.merged.sqrt(), self.target.sqrt(), both_zero=1.0)

    @property
    def cosine(self) -> Float[Tensor, " modules"]:
        """<ΔW, D> / (‖ΔW‖ ‖D‖); 1 when both are zero, 0 when one is."""
        norms = (self.merged * self.target).sqrt()
        both_zero = (self.merged == 0) & (self.target == 0)
        return torch.where(norms > 0, self.inner / norms.clamp_min(1e-300), both_zero.double()).clamp(-1, 1)


def ratio(above: Tensor, below: Tensor, both_zero: float = 0.0) -> Tensor:
    """above / below, where 0/0 is ``both_zero`` and x/0 infinite."""
    at_zero = torch.where(above > 0, torch.inf, torch.tensor(both_zero, dtype=above.dtype))
    return torch.where(below > 0, above / below.clamp_min(1e-300), at_zero)


def compare(
    down: Float[Tensor, "modules k d_in"],
    up: Float[Tensor, "modules d_out k"],
    target_down: Float[Tensor, "modules units d_in"],
    target_up: Float[Tensor, "modules d_out units"],
) -> Fidelity:
    """Measure ``up @ down`` against ``target_up @ target_down``.

    With U = [up, target_up] and V = [down; −target_down] the difference is U V and ‖U V‖_F² = Σ (UᵀU) ∘ (V Vᵀ). In fp64, since
    small differences of large numbers are what is asked for.
    """
    k = down.shape[1]
    units = torch.cat([down, target_down], 1).double(), torch.cat([up, target_up], 2).double()
    products = (units[0] @ units[0].mT) * (units[1].mT @ units[1])  # (M, k + units, k + units)
    merged, inner, target = products[:, :k, :k], products[:, :k, k:], products[:, k:, k:]
    sums = [part.sum(dim=(1, 2)).clamp_min(0) for part in (merged, target)]
    between = inner.sum(dim=(1, 2))
    error = (sums[0] + sums[1] - 2 * between).clamp_min(0)
    return Fidelity(sums[0], sums[1], between, error)
