"""The SVD of B·A without ever building the d_out × d_in matrix: only inner products of the units are needed.

With the Gram matrices G_A = A Aᵀ, G_B = BᵀB and S = G_B^{1/2}, the symmetric matrix S G_A S has eigenvectors X and eigenvalues σ²,
where σ are the singular values of B A. Their vectors are V = Aᵀ S X σ⁻¹ and U = B G_A S X σ⁻², so cutting to a rank is one small
product on each side. In fp64, where squaring costs nothing that fp32 factors had.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

# Singular values below this share of the largest are rounding of fp32 factors,
NUMERICAL_RANK = 1e-6
# and so are those below this share of ‖A‖‖B‖, where the units cancel each other.
CANCELLED = 1e-7

Down = Float[Tensor, "modules units d_in"]
Up = Float[Tensor, "modules d_out units"]


@dataclass(frozen=True)
class Core:
    """The SVD of ``up @ down`` in the coordinates of the units: U = up @ left, Vᵀ = right @ down; fp64.

    Attributes:
        values: singular values, descending, exactly 0 beyond the numerical rank, (M, units).
        left: (M, units, units); column i is 0 where value i is.
        right: (M, units, units); row i is 0 where value i is.
    """

    values: Float[Tensor, "modules q"]
    left: Float[Tensor, "modules units q"]
    right: Float[Tensor, "modules q units"]

    @property
    def ranks(self) -> list[int]:
        """The numerical rank of each module, at least 1."""
        return (self.values > 0).sum(1).clamp_min(1).tolist()

    def keeping(self, share: float) -> list[int]:
        """The least rank that keeps a share of each module's energy ‖D‖_F², at least 1."""
        energy = self.values.square().cumsum(1)
        enough = energy >= share * energy[:, -1:] * (1 - 1e-12)
        return (enough.double().argmax(1) + 1).tolist()


def exact_gram(rows: Float[Tensor, "modules units length"]) -> Float[Tensor, "modules units units"]:
    """Inner products in fp64, one module at a time: a copy of all of them in fp64 would double the memory."""
    return torch.stack([row @ row.T for row in (module.double() for module in rows)])


def core_of(down: Down, up: Up) -> Core:
    """The `Core` of ``up @ down``."""
    return core_from(exact_gram(down), exact_gram(up.mT))


def core_from(gram_down: Float[Tensor, "modules units units"], gram_up: Float[Tensor, "modules units units"]) -> Core:
    """The same from inner products, fp64."""
    # Halves of equal length: a unit large in one half, beside one large in the other, would make both look like rounding.
    grow, shrink = evening(*(gram.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt() for gram in (gram_down, gram_up)))
    gram_down, gram_up = gram_down * grow[:, :, None] * grow[:, None], gram_up * shrink[:, :, None] * shrink[:, None]
    values, vectors = torch.linalg.eigh(gram_up)
    root = (vectors * values.clamp_min(0).sqrt()[:, None]) @ vectors.mT
    squares, x = torch.linalg.eigh(root @ gram_down @ root)
    sigma, x = squares.clamp_min(0).sqrt().flip(1), x.flip(2)
    bound = (values[:, -1:] * gram_down.diagonal(dim1=1, dim2=2).sum(1, keepdim=True)).clamp_min(0).sqrt()
    sigma = torch.where(sigma > torch.maximum(NUMERICAL_RANK * sigma[:, :1], CANCELLED * bound), sigma, 0)
    inverse = torch.where(sigma > 0, 1 / sigma, 0)
    right = root @ x * inverse[:, None]
    return Core(sigma, shrink[:, :, None] * (gram_down @ right * inverse[:, None]), right.mT * grow[:, None])


def core_svd(
    down: Down, up: Up
) -> tuple[Float[Tensor, "modules d_out q"], Float[Tensor, "modules q"], Float[Tensor, "modules q d_in"]]:
    """U, σ and Vᵀ of ``up @ down``, as many as it has units at most; vectors of σ = 0 are 0."""
    core = core_of(down, up)
    q = max(core.ranks)
    left, right = core.left[:, :, :q].to(up.dtype), core.right[:, :q].to(down.dtype)
    return up @ left, core.values[:, :q].to(down.dtype), right @ down


def truncate(down: Down, up: Up, rank: int | None = None, core: Core | None = None) -> tuple[Down, Up]:
    """The best approximation of ``up @ down`` of a rank, its singular values split evenly between the halves.

    Args:
        down, up: the factors.
        rank: k; the numerical rank of the largest module when not given, so that nothing is lost.
        core: of these factors, where it is known already.
    """
    core = core or core_of(down, up)
    k = max(core.ranks) if rank is None else rank
    root = core.values[:, :k].sqrt()
    left, right = core.left[:, :, :k] * root[:, None], root[:, :, None] * core.right[:, :k]
    return right.to(down.dtype) @ down, up @ left.to(up.dtype)


def even(down: Down, up: Up) -> tuple[Down, Up]:
    """Each unit rescaled to ‖a‖ = ‖b‖, so that neither half falls out of fp16's range; b aᵀ stays.

    A unit with a half of zero becomes zero in both.
    """
    grow, shrink = evening(torch.linalg.vector_norm(down, dim=2), torch.linalg.vector_norm(up, dim=1))
    return grow[:, :, None] * down, up * shrink[:, None]


def evening(
    a: Float[Tensor, "modules units"], b: Float[Tensor, "modules units"]
) -> tuple[Float[Tensor, "modules units"], Float[Tensor, "modules units"]]:
    """Factors of the two halves that make their lengths ‖a‖ and ‖b‖ equal; 0 for a unit with a half of zero."""
    live = (a > 0) & (b > 0)
    return torch.where(live, (b / a).sqrt(), 0), torch.where(live, (a / b).sqrt(), 0)
