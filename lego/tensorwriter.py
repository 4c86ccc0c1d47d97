"""A safetensors file written one tensor after another, so that only one has to be in memory.

The format wants a header with every tensor's place before the data, and what the places are is known at the end. So tensors go to a
file of their own first, and are copied behind the header then. What was added in another order gives the same bytes.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, bfloat16, float16, float32, uint8

DTYPES = {float32: "F32", float16: "F16", bfloat16: "BF16"}
PIECE = 2**20  # bytes copied at a time


class TensorWriter:
    """Add tensors, then `finish`.

    Args:
        path: of the file to make; what is added meanwhile lies in an unnamed file beside it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.parts: dict[str, tuple[str, tuple[int, ...], int, int]] = {}  # dtype, shape, start, bytes
        self.end = 0
        self.data = tempfile.TemporaryFile(dir=path.parent, buffering=0)  # noqa: SIM115 - lives as long as the writer

    def add(self, key: str, tensor: Tensor) -> None:
        """Append a tensor."""
        flat = tensor.contiguous().view(-1).view(uint8).numpy().data
        self.parts[key] = DTYPES[tensor.dtype], tuple(tensor.shape), self.end, len(flat)
        self.end += len(flat)
        while flat:
            flat = flat[self.data.write(flat) :]

    def finish(self, metadata: Mapping[str, str], order: Sequence[str]) -> None:
        """Make the file.

        Args:
            metadata: strings for the header.
            order: all keys, as the file is to have them.
        """
        entries: dict[str, Any] = {"__metadata__": {"format": "pt", **dict(sorted(metadata.items()))}}
        end = 0
        for key in order:
            dtype, shape, _, size = self.parts[key]
            entries[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end := end + size]}
        header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        header = header.ljust(-(-len(header) // 8) * 8)  # tensors begin at a multiple of eight, as safetensors has it
        with self.path.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for key in order:
                _, _, start, left = self.parts[key]
                self.data.seek(start)
                while left:
                    left -= file.write(self.data.read(min(PIECE, left)))

    def close(self) -> None:
        """Let go of what was added."""
        self.data.close()

    def __enter__(self) -> TensorWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
