"""What the headers alone tell of an adapter, in milliseconds: format, ranks, targets, base, size, and every reason to refuse it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lego.adapter import Modules, ModuleSpec, natural_order
from lego.formats.header import Header, TensorFile, check_header, read_header
from lego.formats.opening import base_of, contents_of, find


@dataclass(frozen=True)
class Preflight(Modules):
    """An adapter before any of its tensors is read.

    Attributes:
        format: of the file, a key of `lego.formats.FORMATS`.
        modules: what the headers tell of each module that is a plain LoRA, in natural order.
        base_model: the base as the files name it.
        dtypes: of the weights, as safetensors names them.
        bytes: of the weights.
        fused: groups of modules that share one A, since they were one module in the file: the same units several times.
        reasons: why it cannot be merged, all that are found; empty when it can. `read_adapter` refuses with the same texts.
    """

    format: str
    modules: Mapping[str, ModuleSpec] = field(repr=False)
    base_model: str | None
    dtypes: tuple[str, ...]
    bytes: int
    fused: tuple[tuple[str, ...], ...]
    reasons: tuple[str, ...]


def preflight(path: str | Path) -> Preflight:
    """Look at a local adapter, at the file's header and the config only (and kohya's alphas, one number a module).

    Args:
        path: a folder or a file, as `lego.read_adapter` takes it.

    Raises:
        AdapterError: when there is no adapter, or no sound safetensors file; everything else is among the reasons.
    """
    found = find(Path(path))
    file = TensorFile(found.weights, read_header(found.weights))
    return judge(file.header, found.config, found.card, path, file)


def preflight_header(
    header: Mapping[str, Any],
    config: Mapping[str, Any] | None = None,
    where: object = None,
    card: Mapping[str, Any] | None = None,
) -> Preflight:
    """Look at an adapter whose files are elsewhere. Scales of kohya files stay 1, since their alphas are not in the header.

    Args:
        header: of its safetensors file, parsed from JSON.
        config: of a PEFT adapter, parsed from JSON; None for a single file.
        where: it is, for the error.
        card: front matter of its README.md.

    Raises:
        AdapterError: when it is no sound safetensors header; everything else is among the reasons.
    """
    return judge(check_header(header, where), config, card or {}, where)


def judge(
    header: Header,
    config: Mapping[str, Any] | None,
    card: Mapping[str, Any],
    where: object,
    file: TensorFile | None = None,
) -> Preflight:
    """The preflight of checked headers."""
    contents, reasons = contents_of(header, config, where, file)
    modules = {module: contents.parts[module].spec for module in sorted(contents.parts, key=natural_order)}
    dtypes = tuple(sorted({entry.dtype for entry in header.tensors.values() if entry.shape}))
    base = base_of(contents, card)
    return Preflight(contents.format, modules, base, dtypes, header.bytes, contents.fused, tuple(reasons.texts))
