"""How much adapters get into each other's way, before any merge: from inner products of their units alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement, product
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lego.adapter import Adapter, natural_order
from lego.errors import AdapterError
from lego.lowrank import NUMERICAL_RANK, exact_gram
from lego.merge import Progress
from lego.tables import LINES, grid, left_out, short
from lego.units import Pool, groups
from lego.units import pool as units_of
from lego.weights import Weight

# Rows of an update that are looked at for sign conflicts; a module with no more outputs is counted in full.
ROWS = 64
# Updates that cancel to less than this share of their energy are nothing but rounding of fp32 factors.
ROUNDING = 1e-12

Pairs = Float[np.ndarray, "modules n n"]


@dataclass(frozen=True, eq=False)
class Interference:
    """Measures between the weighted updates w_j D_j of N adapters, D_j = s_j B_j A_j, in M modules in natural order.

    A negative weight turns its update around; where an adapter's weight is 0 or it lacks the module, all its values are 0. Biases of
    B are not looked at. Every value is finite.

    Attributes:
        adapters: the N names.
        modules: the M names.
        inner: <w_i D_i, w_j D_j>; the diagonal is the squared norm.
        response: <w_j D_j P_i, w_k D_k P_i> at [m, i, j, k], with P_i the projector on the row space of A_i: what j and k do, each
            and together, on the inputs that i reads.
        unit_max, unit_mean: the largest and the mean |cosine| between a unit of i and one of j, as rank-one matrices b aᵀ: cos(a, a')
            · cos(b, b'). So (a, b), (−a, −b) and (c·a, b/c) count as the same unit, as they are the same update. The largest tells of
            a shared direction that clustering will find, the mean of how close they are throughout. Both depend on how each update is
            split into units.
        overlap_in, overlap_out: ‖Q_iᵀ Q_j‖_F² / min(r_i, r_j) of the row spaces of A and of the column spaces of B: 0 orthogonal, 1
            where one holds the other.
        shared, opposed: Σ min(|x_i|, |x_j|) over entries of the updates, and its part where their signs differ.
        rows: how many rows of an update the last two were estimated from at most.
    """

    adapters: tuple[str, ...]
    modules: tuple[str, ...]
    inner: Pairs
    response: Float[np.ndarray, "modules n n n"]
    unit_max: Pairs
    unit_mean: Pairs
    overlap_in: Pairs
    overlap_out: Pairs
    shared: Pairs
    opposed: Pairs
    rows: int = ROWS

    @property
    def norms(self) -> Float[np.ndarray, "modules n"]:
        """‖w_j D_j‖_F."""
        return np.sqrt(np.diagonal(self.inner, axis1=1, axis2=2))

    @property
    def cosine(self) -> Pairs:
        """<D_i, D_j> / (‖D_i‖ ‖D_j‖), with the signs of the weights."""
        return np.clip(divided(self.inner, self.norms[:, :, None] * self.norms[:, None]), -1, 1)

    @property
    def sign_conflict(self) -> Pairs:
        """The share of the magnitude that both updates put on the same entries that is opposed in sign; ½ for unrelated ones.

        An entry counts with the smaller of its two magnitudes, which is what cancels or adds up there.
        """
        return divided(self.opposed, self.shared)

    @property
    def change(self) -> Pairs:
        """‖w_j D_j P_i‖ / ‖w_i D_i‖ at [m, i, j]: how strongly j changes i's outputs on the inputs that i reads."""
        return divided(np.sqrt(np.diagonal(self.response, axis1=2, axis2=3)), self.norms[:, :, None])

    @property
    def hit(self) -> Pairs:
        """‖D_j P_i‖² / ‖D_j‖² at [m, i, j]: which share of j's update acts on the inputs that i reads."""
        return divided(np.diagonal(self.response, axis1=2, axis2=3), self.norms[:, None] ** 2)

    @property
    def change_by_others(self) -> Float[np.ndarray, "modules n"]:
        """`change` of each adapter by all others together, ‖Σ_{j≠i} w_j D_j P_i‖ / ‖w_i D_i‖."""
        return divided(np.sqrt(self.on_inputs), self.norms)

    @property
    def scores(self) -> Float[np.ndarray, "modules n"]:
        """The interference with each adapter, 0 to 1: the share of what all others do that acts on the inputs that it reads.

        ‖Σ_{j≠i} w_j D_j P_i‖² / ‖Σ_{j≠i} w_j D_j‖². At 0 the others leave the outputs of A_i's inputs as they are; at 1 all they do
        happens there and adds up with, cancels or drowns what i does: `cosine` and `change` tell which.

        How well it predicts: `benchmarks.interference` sums all pairs of six adapters of one small language model, 30 cases of a
        task and a partner. Over them the score ranks the rise of the task's loss with Spearman's ρ = 0.45, the fall of exact answers
        with 0.47, and the partners of one task with 0.62 on average. Cosines, overlaps, sign conflicts and `change` stay within ±0.3
        over all cases; the rank of A_i alone reaches 0.37. The definition was chosen on these same cases. So it hints at which partner
        to look at first; how fragile a task is does not show in its adapter's weights. It does not see how strong two adapters
        are beside each other: that is `change`.
        """
        others = ~np.eye(len(self.adapters), dtype=bool)
        whole = np.einsum("ij,ik,mjk->mi", others, others, self.inner)
        real = (self.norms > 0) & (whole > ROUNDING * (self.norms**2).sum(1, keepdims=True))
        return np.minimum(divided(self.on_inputs, whole * real), 1)

    @property
    def score(self) -> Float[np.ndarray, " modules"]:
        """The mean of `scores` over the adapters that are in the module; 0 where there is only one."""
        return divided(self.scores.sum(1), (self.norms > 0).sum(1))

    @property
    def on_inputs(self) -> Float[np.ndarray, "modules n"]:
        """‖Σ_{j≠i} w_j D_j P_i‖²."""
        others = ~np.eye(len(self.adapters), dtype=bool)
        return np.maximum(np.einsum("ij,ik,mijk->mi", others, others, self.response), 0)

    def total(self) -> Interference:
        """All modules together as one long vector, under the name ``all``.

        Norms, inner products and conflicts add up; unit cosines and overlaps are means over the modules that both adapt.
        """
        added: dict[str, Any] = {
            name: getattr(self, name).sum(0)[None] for name in ("inner", "response", "shared", "opposed")
        }
        both = (self.norms[:, :, None] > 0) & (self.norms[:, None] > 0)
        means: dict[str, Any] = {
            name: divided((getattr(self, name) * both).sum(0), both.sum(0))[None]
            for name in ("unit_max", "unit_mean", "overlap_in", "overlap_out")
        }
        return replace(self, modules=("all",), **added, **means)

    def text(self) -> str:
        """Adapters, pairs and modules for a terminal, 100 columns, the worst pairs and modules first."""
        every, names = self.total(), [short(name, 24) for name in self.adapters]
        facts = zip(names, every.norms[0], every.scores[0], every.change_by_others[0], strict=True)
        adapters = [[name, f"{norm:.4g}", f"{score:.3f}", f"{change:.3f}"] for name, norm, score, change in facts]
        hit, change = every.hit[0], every.change[0]
        pairs = [(i, j) for i, j in product(range(len(names)), repeat=2) if i != j]
        pairs.sort(key=lambda pair: -hit[pair])
        columns = (hit, change, *(getattr(every, name)[0] for name in ("cosine", "unit_max", "unit_mean")))
        columns = (*columns, *(getattr(every, name)[0] for name in ("overlap_in", "overlap_out", "sign_conflict")))
        lines = [
            [short(names[i], 14), short(names[j], 14), *(f"{column[i, j]:.3f}" for column in columns)] for i, j in pairs
        ]
        head = ["on", "by", "hit", "change", "cosine", "unit max", "mean", "inputs", "outputs", "signs"]
        score, scores, changes = self.score, self.scores, self.change_by_others
        worst = [
            [
                short(self.modules[m], 48),
                f"{score[m]:.3f}",
                short(names[scores[m].argmax()], 20),
                f"{changes[m].max():.3f}",
            ]
            for m in np.argsort(-score, kind="stable")[:LINES]
        ]
        return "\n".join(
            [
                f"interference {every.score[0]:.3f}, from 0 (they do not touch) to 1 (all that one does happens on another's inputs)",
                *grid(["adapter", "norm", "score", "change by others"], adapters),
                "",
                *grid(head, lines[:LINES], left=(0, 1)),
                *left_out(len(lines), "pairs"),
                f"signs: opposed share of the magnitude on common entries, from up to {self.rows} rows a module; ½ is chance",
                "",
                *grid(["module, worst first", "score", "most on", "largest change"], worst, left=(0, 2)),
                *left_out(len(self.modules), "modules"),
            ]
        )

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain data that JSON can hold; matrices are lists in the order of ``adapters``."""
        columns = {name: getattr(self, name).tolist() for name in SHOWN}
        modules = [
            {"module": module, **{name: column[m] for name, column in columns.items()}}
            for m, module in enumerate(self.modules)
        ]
        every = self.total()
        return {
            "adapters": list(self.adapters),
            "rows_for_signs": self.rows,
            "overall": {name: getattr(every, name)[0].tolist() for name in SHOWN},
            "modules": modules,
        }


SHOWN = (
    "score", "scores", "change_by_others", "norms", "cosine", "change", "hit", "unit_max", "unit_mean",
    "overlap_in", "overlap_out", "sign_conflict",
)  # fmt: skip


def interference(
    adapters: Sequence[Adapter],
    weights: Sequence[Weight] | None = None,
    *,
    rows: int = ROWS,
    seed: int = 0,
    progress: Progress | None = None,
) -> Interference:
    """Measure what adapters do to each other, one group of modules in memory at a time.

    Args:
        adapters: two or more, of one base; any ranks, scales and targets.
        weights: w_j as for a merge, 1 each unless given.
        rows: of each update that sign conflicts are estimated from; exact in modules with no more outputs.
        seed: of the choice of rows.
        progress: told after each group how many modules are measured, and of how many.

    Raises:
        AdapterError: for fewer than two adapters, no rows, or weights or adapters that cannot be used together.
    """
    if len(adapters) < 2:
        raise AdapterError("interference is between adapters", None, "Give at least two.")
    if rows < 1:
        raise AdapterError(f"sign conflicts cannot be estimated from {rows} rows", None, "Give at least one.")
    parts: dict[str, dict[str, np.ndarray]] = {}
    plan = groups(adapters, weights)
    for names in plan:
        pool = units_of(adapters, names, weights, seed)
        measured = {**products(pool, len(adapters)), **signs(pool, len(adapters), rows)}
        for row, module in enumerate(pool.modules):
            parts[module] = {name: values[row].cpu().numpy() for name, values in measured.items()}
        if progress:
            progress(len(parts), sum(map(len, plan)))
    modules = sorted(parts, key=natural_order)
    stacked = {name: np.stack([parts[module][name] for module in modules]) for name in parts[modules[0]]}
    return Interference(tuple(a.name for a in adapters), tuple(modules), rows=rows, **stacked)


def products(pool: Pool, sources: int) -> dict[str, Tensor]:
    """All measures that need only the Gram matrices G_A = A Aᵀ and G_B = Bᵀ B, in fp64."""
    gram_down, gram_up = exact_gram(pool.down), exact_gram(pool.up.mT)
    member = torch.nn.functional.one_hot(pool.owner, sources).to(gram_down)
    units = gram_down * gram_up  # <b_u a_uᵀ, b_v a_vᵀ>
    size = units.diagonal(dim1=1, dim2=2).sqrt()
    cosines = (units / (size[:, :, None] * size[:, None]).clamp_min(1e-300)).abs()
    ranks = member.sum(0)
    largest = torch.zeros(len(units), sources, sources).to(units)
    for i, j in product(pool.present, repeat=2):
        largest[:, i, j] = cosines[:, pool.owner == i][:, :, pool.owner == j].amax(dim=(1, 2))
    basis_in = orthonormal(gram_down, member)
    # Columns of A Q_iᵀ for every i, so that ‖B_j A_j Q_iᵀ‖² is a sum over G_B.
    on_basis = gram_down @ basis_in.mT
    response = torch.stack([member.T @ ((on_basis * own) @ on_basis.mT * gram_up) @ member for own in member.T], dim=1)
    return {
        "inner": member.T @ units @ member,
        "response": response,
        "unit_max": largest,
        "unit_mean": member.T @ cosines @ member / (ranks[:, None] * ranks).clamp_min(1),
        "overlap_in": overlap(gram_down, basis_in, member),
        "overlap_out": overlap(gram_up, orthonormal(gram_up, member), member),
    }


def orthonormal(
    gram: Float[Tensor, "modules units units"], member: Float[Tensor, "units sources"]
) -> Float[Tensor, "modules units units"]:
    """W, so that the rows of W_j A_j span those of A_j and W_j A_j A_jᵀ W_jᵀ is a projector: the blocks of G^{−1/2}, each source's
    units by themselves, with the eigenvalues that are rounding of fp32 factors left out."""
    lengths = gram.diagonal(dim1=1, dim2=2).sqrt()
    inverse_lengths = torch.where(lengths > 0, 1 / lengths, 0)
    own = gram * (member @ member.T) * inverse_lengths[:, :, None] * inverse_lengths[:, None]
    values, vectors = torch.linalg.eigh(own)
    root = torch.where(values > NUMERICAL_RANK**2 * len(member), values, torch.inf) ** -0.5
    return (vectors * root[:, None]) @ vectors.mT * inverse_lengths[:, None]


def overlap(
    gram: Float[Tensor, "modules units units"],
    basis: Float[Tensor, "modules units units"],
    member: Float[Tensor, "units sources"],
) -> Float[Tensor, "modules sources sources"]:
    """‖Q_i Q_jᵀ‖_F² / min(r_i, r_j) with r the numerical ranks, which are ‖Q_i Q_iᵀ‖_F²."""
    found = member.T @ (basis @ gram @ basis.mT).square() @ member
    ranks = found.diagonal(dim1=1, dim2=2)
    least = torch.minimum(ranks[:, :, None], ranks[:, None])
    return torch.where(least > 0.5, found / least.clamp_min(0.5), 0)


def signs(pool: Pool, sources: int, rows: int) -> dict[str, Tensor]:
    """``shared`` and ``opposed``, estimated from seeded rows of each update and scaled up to all of them."""
    outputs = pool.up.shape[1]
    picked = pool.uniform(outputs, stream="rows for signs").argsort(1)[:, :rows]
    shared = torch.zeros(len(pool.modules), sources, sources, dtype=torch.float64, device=pool.down.device)
    opposed = torch.zeros_like(shared)
    for m, at in enumerate(picked):
        up, own = pool.up[m, at], {j: pool.owner == j for j in pool.present}
        parts = {j: up[:, own[j]] @ pool.down[m, own[j]] for j in pool.present}  # (rows, d_in) each
        for i, j in combinations_with_replacement(pool.present, 2):
            least = torch.minimum(parts[i].abs(), parts[j].abs())
            shared[m, i, j] = shared[m, j, i] = least.sum()
            opposed[m, i, j] = opposed[m, j, i] = (least * ((parts[i] < 0) != (parts[j] < 0))).sum()
    scale = outputs / picked.shape[1]
    return {"shared": shared * scale, "opposed": opposed * scale}


def divided(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below, 0 where below is 0: there is nothing that could be touched."""
    return np.divide(above, below, out=np.zeros(np.broadcast_shapes(above.shape, below.shape)), where=below > 0)
