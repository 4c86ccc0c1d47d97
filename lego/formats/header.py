"""A safetensors file: its header checked entry by entry before any tensor is read, and tensors read by range.

The file is read, not mapped: what is read leaves no trace in memory, and a file cut short meanwhile is an error, not a crash.
Format: https://huggingface.co/docs/safetensors (eight bytes of length, JSON, tensors without gaps).
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lego.adapter import finite
from lego.errors import AdapterError

MOST_HEADER = 25_000_000
"""Bytes, a tenth of a second to read; safetensors allows 100 million, the largest found with LoRAs have one or two."""
MOST_TENSORS = 50_000
MOST_PARTS = 700_000
"""Brackets, commas and colons of a JSON text: what takes a second to read. A tensor has 13."""
MOST_NAME = 1000
BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
WHOLE = {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8}


class Entry(NamedTuple):
    """One tensor as the header declares it; ``start`` and ``stop`` count bytes from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself.

    Attributes:
        tensors: by key, in the file's order.
        metadata: strings by name.
        data: where the tensors begin in the file.
    """

    tensors: Mapping[str, Entry]
    metadata: Mapping[str, str] = field(default_factory=dict)
    data: int = 0

    @property
    def bytes(self) -> int:
        """Of all tensors together."""
        return max((entry.stop for entry in self.tensors.values()), default=0)


def damaged(why: str, where: object) -> AdapterError:
    """The error of a file that is no sound safetensors file."""
    return AdapterError(f"is not a readable safetensors file ({why})", where, "Download or save it again.")


def strict_json(text: str | bytes, where: object) -> Any:
    """JSON in UTF-8 without repeated names.

    Raises:
        AdapterError: when it is not JSON, nests too deep, has more parts than any adapter needs, or an object names something twice.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
            raise AdapterError(f"names {twice!r} twice", where, "The file is damaged or made to deceive.")
        return found

    try:
        text = text.decode() if isinstance(text, bytes) else text
        if (parts := sum(map(text.count, "[{,:"))) > MOST_PARTS:
            raise AdapterError(f"has {parts} parts, which no such file needs", where)
        found = json.loads(text, object_pairs_hook=once)
        if re.search(
            r"\\u[dD]", text
        ):  # half of a pair that stands alone is no character, and could not be written again
            json.dumps(found, ensure_ascii=False).encode()
        return found
    except (ValueError, RecursionError) as error:
        if isinstance(error, AdapterError):
            raise
        raise AdapterError(f"is not valid JSON ({error})", where) from error


def read_header(path: Path) -> Header:
    """The header of a file, checked against the file's size.

    Raises:
        AdapterError: for anything a sound safetensors file does not have.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise damaged("it ends before its header does", path)
            if length > MOST_HEADER:
                raise damaged(f"its header has {length / 1e6:.0f} MB", path)
            text = file.read(length)
    except OSError as error:
        raise AdapterError(f"cannot be read ({error.strerror})", path) from error
    if not text.startswith(b"{"):
        raise damaged("its header is not JSON", path)
    try:
        found = strict_json(text, path)
    except AdapterError as error:
        raise damaged(error.what, path) from error
    return check_header(found, path, size - 8 - length, 8 + length)


def check_header(raw: Mapping[str, Any], where: object, size: int | None = None, data: int = 0) -> Header:
    """A header from its JSON, every entry checked.

    Args:
        raw: tensors by key with ``dtype``, ``shape``, ``data_offsets``, and ``__metadata__``.
        where: for the error.
        size: bytes of all tensors in the file; None where it is not known.
        data: where the tensors begin.

    Raises:
        AdapterError: for unknown types, shapes that contradict the offsets, overlaps, gaps, and tensors beyond the file's end.
    """
    metadata = raw.get("__metadata__", {})
    if not isinstance(metadata, Mapping) or not all(isinstance(value, str) for value in metadata.values()):
        raise damaged("its metadata are not strings", where)
    if len(raw) > MOST_TENSORS:
        raise damaged(f"it declares {len(raw)} tensors", where)
    if strange := next((key for key in raw if len(key) > MOST_NAME or not key.isprintable()), None):
        raise damaged(f"no tensor can have the name {strange[:40]!r}, of {len(strange)} characters", where)
    tensors = {key: check_entry(key, entry, where) for key, entry in raw.items() if key != "__metadata__"}
    end = 0
    for key, entry in sorted(tensors.items(), key=lambda item: item[1][2:]):
        if entry.start != end:
            raise damaged(f"tensor {key} begins at byte {entry.start}, not at {end}", where)
        end = entry.stop
    if size is not None and end != size:
        raise damaged(f"it declares {end} bytes of tensors and holds {size}", where)
    return Header(tensors, metadata, data)


def check_entry(key: str, entry: Any, where: object) -> Entry:
    """One entry of the header.

    Raises:
        AdapterError: when a part is missing or of the wrong kind, or the shape contradicts the offsets.
    """
    if not isinstance(entry, Mapping):
        raise damaged(f"tensor {key} is not described", where)
    dtype: Any = entry.get("dtype")
    shape: Any = entry.get("shape")
    offsets: Any = entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in BYTES:
        raise damaged(f"tensor {key} is of the unknown type {str(dtype)[:20]}", where)
    if not (counts(shape) and counts(offsets) and len(shape) <= 8 and len(offsets) == 2):
        raise damaged(f"tensor {key} has no sound shape and offsets", where)
    if offsets[1] - offsets[0] != math.prod(shape) * BYTES[dtype]:
        raise damaged(f"tensor {key} has another size than its shape says", where)
    return Entry(dtype, tuple(shape), offsets[0], offsets[1])


def counts(values: Any) -> bool:
    """Whether it is a list of whole numbers from 0 on."""
    return isinstance(values, list | tuple) and all(type(value) is int and 0 <= value < 2**63 for value in values)


@dataclass(frozen=True)
class TensorFile:
    """A safetensors file to read from; opened at the first tensor and then kept open."""

    path: Path
    header: Header

    @cached_property
    def file(self) -> FileIO:
        """The open file, without a buffer."""
        try:
            return FileIO(self.path)
        except OSError as error:
            raise AdapterError(f"cannot be read ({error.strerror})", self.path) from error

    def read(self, key: str, rows: Sequence[tuple[int, int]] | None = None) -> Tensor:
        """A tensor, or ranges of its rows one after the other, in fp32.

        Raises:
            AdapterError: when the file has become shorter, or a value is NaN or infinite.
        """
        entry = self.header.tensors[key]
        row = math.prod(entry.shape[1:]) * BYTES[entry.dtype]
        ranges = (
            [(entry.start, entry.stop)]
            if rows is None
            else [(entry.start + a * row, entry.start + b * row) for a, b in rows]
        )
        shape = entry.shape if rows is None else (sum(b - a for a, b in rows), *entry.shape[1:])
        raw = torch.empty(sum(stop - start for start, stop in ranges), dtype=torch.uint8)
        into, done = memoryview(raw.numpy().data), 0
        for start, stop in ranges:
            self.fill(into[done : done + stop - start], self.header.data + start)
            done += stop - start
        return finite(raw.view(FLOATS[entry.dtype]).view(shape).float(), f"{self.path}, {key}")

    def scalar(self, key: str) -> float:
        """A tensor of one value, whole numbers too; NaN for one of more values."""
        entry = self.header.tensors[key]
        dtype = {**FLOATS, **WHOLE}.get(entry.dtype)
        if dtype is None or math.prod(entry.shape) != 1:
            return math.nan
        raw = torch.empty(entry.stop - entry.start, dtype=torch.uint8)
        self.fill(memoryview(raw.numpy().data), self.header.data + entry.start)
        return float(raw.view(dtype)[0])

    def fill(self, into: memoryview, offset: int) -> None:
        """Read bytes into memory until it is full.

        Raises:
            AdapterError: when the file ends before.
        """
        while into:
            try:
                count = os.preadv(self.file.fileno(), [into], offset)
            except OSError as error:
                raise AdapterError(f"cannot be read ({error.strerror})", self.path) from error
            if not count:
                raise AdapterError("has become shorter since it was opened", self.path, "Open it again.")
            into, offset = into[count:], offset + count
