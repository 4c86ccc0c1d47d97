"""Stand-ins for tensors: what another library's converter renames, splits or reorders is learned without reading any."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch

from lego.formats.parts import Piece, Rows


class StandIn:
    """Behaves like the tensor under one key as far as converters look: it has a shape and remembers which of its rows it holds.

    Converters multiply by alpha/rank; they are given alpha = rank, so every factor must be 1. Asked for its values (is a part of it
    all zeros?), it says no: then a fused B is split into whole rows, which is exact whatever its values are.

    Args:
        key: of the tensor in the file.
        shape: as its header says.
        rows: ranges of its rows; all of them unless given.
    """

    dtype, device, requires_grad = torch.float32, torch.device("cpu"), False

    def __init__(self, key: str, shape: Sequence[int], rows: Rows | None = None) -> None:
        self.key, self.full = key, tuple(shape)
        self.rows = rows or ((0, self.full[0] if self.full else 0),)

    @property
    def shape(self) -> torch.Size:
        """Of the rows it holds."""
        return torch.Size((sum(stop - start for start, stop in self.rows), *self.full[1:]))

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.full)

    @property
    def piece(self) -> Piece:
        """What it stands for."""
        whole = self.rows == ((0, self.full[0]),)
        return Piece(self.key, tuple(self.shape), None if whole else self.rows)

    def __mul__(self, factor: Any) -> StandIn:
        if float(factor) != 1:
            raise TypeError(f"{self.key} is scaled by {float(factor):g}")
        return self

    __rmul__ = __mul__

    def __getitem__(self, index: Any) -> StandIn:
        return self

    def __eq__(self, other: object) -> Any:
        return torch.tensor(False)

    __hash__ = None  # type: ignore[assignment]

    def contiguous(self) -> StandIn:
        """Itself."""
        return self

    def split(self, sizes: int | Sequence[int], dim: int = 0) -> list[StandIn]:
        """As `torch.split`, along the rows."""
        count = self.shape[0]
        if dim != 0:
            raise TypeError(f"{self.key} is split along its columns")
        if isinstance(sizes, int):
            sizes = [min(sizes, count - start) for start in range(0, count, sizes)]
        if sum(sizes) != count:
            raise ValueError(f"{self.key} has {count} rows, not {sum(sizes)}")
        bounds = [sum(sizes[:number]) for number in range(len(sizes) + 1)]
        return [self.take(start, stop) for start, stop in pairwise(bounds)]

    def chunk(self, chunks: int, dim: int = 0) -> list[StandIn]:
        """As `torch.chunk`, along the rows."""
        return self.split(-(-self.shape[0] // chunks), dim)

    def take(self, start: int, stop: int) -> StandIn:
        """A range of the rows it holds."""
        found, passed = [], 0
        for first, last in self.rows:
            a, b = max(first, first + start - passed), min(last, first + stop - passed)
            if a < b:
                found.append((a, b))
            passed += last - first
        return StandIn(self.key, self.full, tuple(found))

    @classmethod
    def cat(cls, tensors: Sequence[StandIn], dim: int = 0) -> StandIn:
        """As `torch.cat`, of rows of one tensor."""
        if dim != 0 or len({tensor.key for tensor in tensors}) != 1:
            raise TypeError("different tensors are joined")
        return cls(tensors[0].key, tensors[0].full, tuple(rows for tensor in tensors for rows in tensor.rows))

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        own: dict[Callable[..., Any], Callable[..., Any]] = {
            torch.split: cls.split,
            torch.chunk: cls.chunk,
            torch.cat: cls.cat,
        }
        if function not in own:
            raise TypeError(f"{getattr(function, '__name__', function)} is more than renaming")
        return own[function](*args, **kwargs or {})
