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


# Inner products of rows of A and of columns of B.
Products = tuple[Float[Tensor, "modules k l"], Float[Tensor, "modules k l"]]

# Where sums of products cancel below this share of their terms, fp32 has too few digits left.
CANCELS = 1e-3


def compare(
    down: Float[Tensor, "modules k d_in"],
    up: Float[Tensor, "modules d_out k"],
    target_down: Float[Tensor, "modules units d_in"],
    target_up: Float[Tensor, "modules d_out units"],
    target: Products | None = None,
) -> Fidelity:
    """Measure ``up @ down`` against ``target_up @ target_down``.

    With U = [up, target_up] and V = [down; −target_down] the difference is U V, and ‖U V‖_F² = Σ (UᵀU) ∘ (V Vᵀ): inner products are
    enough. In fp32, and again in fp64 for the modules where small differences of large numbers are asked for.

    Args:
        down, up: the merged factors.
        target_down, target_up: the factors of D.
        target: D's own products, where they are known already.
    """
    merged, inner = (down @ down.mT, up.mT @ up), (down @ target_down.mT, up.mT @ target_up)
    found, sure = sums(merged, inner, target or (target_down @ target_down.mT, target_up.mT @ target_up))
    for row in (~sure).nonzero()[:, 0].tolist():
        a, b, c, d = (tensor[row : row + 1].double() for tensor in (down, up, target_down, target_up))
        exact, _ = sums((a @ a.mT, b.mT @ b), (a @ c.mT, b.mT @ d), (c @ c.mT, d.mT @ d))
        for name in Fidelity.__dataclass_fields__:
            getattr(found, name)[row] = getattr(exact, name)[0]
    return found


def sums(merged: Products, inner: Products, target: Products) -> tuple[Fidelity, Tensor]:
    """`Fidelity` from products of downs and of ups, on the CPU, and for which modules nothing cancelled, (M,)."""
    terms = [(a.double() * b.double()).cpu() for a, b in (merged, inner, target)]
    whole, between, exact = (term.sum(dim=(1, 2)) for term in terms)
    whole, exact = whole.clamp_min(0), exact.clamp_min(0)
    error = (whole + exact - 2 * between).clamp_min(0)
    size_merged, size_target = terms[0].abs().sum(dim=(1, 2)), terms[2].abs().sum(dim=(1, 2))
    kept = (exact > CANCELS * size_target) & (error > CANCELS * (size_merged + size_target))
    sure = kept & ((whole > CANCELS * size_merged) | (size_merged == 0))
    return Fidelity(whole, exact, between, error), sure
