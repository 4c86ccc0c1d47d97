"""A safetensors file written one tensor after another, so that only one has to be in memory.

The format wants a header with every tensor's place before the data. Its length is bounded before the first tensor comes; that much is
left free, filled in at the end, and padded with blanks, which the format allows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
LONGEST = 10**13  # of an offset, in bytes


class TensorWriter:
    """Add tensors, then `finish`.

    Args:
        path: of the file to make.
        shapes: every key that may be added, with at least as many digits in its shape as the tensor will have.
        metadata: strings for the header, or others of the same lengths; `finish` takes the final ones.
    """

    def __init__(self, path: Path, shapes: Iterable[tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]) -> None:
        longest = {key: entry("BF16", shape, LONGEST, LONGEST) for key, shape in shapes}
        self.entries: dict[str, Any] = {}
        self.room = -(-len(header(longest, metadata)) // 8) * 8
        self.end = 0
        self.file = path.open("wb")
        self.file.seek(8 + self.room)

    def add(self, key: str, tensor: Tensor) -> None:
        """Append a tensor."""
        data = tensor.contiguous()
        start, self.end = self.end, self.end + data.numel() * data.element_size()
        self.entries[key] = entry(DTYPES[data.dtype], tuple(data.shape), start, self.end)
        self.file.write(data.view(-1).view(torch.uint8).numpy().data)

    def finish(self, metadata: Mapping[str, str]) -> None:
        """Write the header: only now the file is a safetensors file."""
        text = header(self.entries, metadata)
        assert len(text) <= self.room, "shapes and metadata were announced shorter than they are"
        self.file.seek(0)
        self.file.write(self.room.to_bytes(8, "little") + text.ljust(self.room))

    def __enter__(self) -> TensorWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()


def entry(dtype: str, shape: tuple[int, ...], start: int, end: int) -> dict[str, Any]:
    """One tensor in the header."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def header(entries: Mapping[str, Any], metadata: Mapping[str, str]) -> bytes:
    """The header as bytes; equal content gives equal bytes."""
    whole = {"__metadata__": {"format": "pt", **dict(sorted(metadata.items()))}, **entries}
    return json.dumps(whole, separators=(",", ":"), ensure_ascii=False).encode()
