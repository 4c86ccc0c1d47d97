"""Write an adapter as a folder that PEFT loads as it is: complete or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file

from lego.adapter import Adapter
from lego.errors import AdapterError
from lego.fidelity import compare
from lego.formats import peft


def write_adapter(adapter: Adapter, path: str | Path, dtype: torch.dtype = torch.float16) -> Path:
    """Write an adapter in PEFT's layout, its scales folded in (alpha = rank), with its card and its recipe.

    Everything is written beside the target under a temporary name and renamed: a reader sees nothing or the whole folder. A merged
    adapter's report learns the error that rounding to ``dtype`` made.

    Args:
        adapter: from `merge` or `read_adapter`.
        path: the folder to make; it must not exist.
        dtype: of the weights on disk.

    Raises:
        AdapterError: when the folder exists or cannot be written, or a value does not fit into ``dtype``.
    """
    target = Path(path)
    if target.exists() or target.is_symlink():
        raise AdapterError("exists already", target, "Choose another name or remove it first.")
    tensors = peft.tensors_of(adapter, dtype)
    if adapter.report is not None:
        adapter.report.export_error = rounding_error(adapter, tensors)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise AdapterError(f"cannot be written ({error.strerror})", target) from error
    try:
        fill(scratch, adapter, tensors, target.name)
        scratch.chmod(0o755)
        os.rename(scratch, target)
    except OSError as error:
        raise AdapterError(
            f"cannot be written ({error.strerror})", target, "Is there space, and may you write?"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def fill(folder: Path, adapter: Adapter, tensors: dict[str, torch.Tensor], name: str) -> None:
    """Put all files of an adapter into an empty folder."""
    metadata = {"format": "pt"}
    if adapter.recipe is not None:
        recipe = adapter.recipe.to_yaml()
        (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
        metadata["brickyard_recipe"] = recipe
    if adapter.report is not None:
        (folder / "report.json").write_text(adapter.report.model_dump_json(indent=1), encoding="utf-8")
    (folder / peft.CONFIG).write_text(json.dumps(peft.config_of(adapter), indent=2) + "\n", encoding="utf-8")
    (folder / peft.CARD).write_text(card_of(adapter, name), encoding="utf-8")
    save_file(tensors, folder / peft.WEIGHTS, metadata=metadata)
    sort_metadata(folder / peft.WEIGHTS)
    (folder / peft.WEIGHTS).chmod(0o644)


def sort_metadata(path: Path) -> None:
    """Put a safetensors file's metadata in order: the library writes it in a random one, and equal merges must be equal files."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(ordered) <= length, "the same entries, so never longer"
        file.seek(8)
        file.write(ordered.ljust(length))


def rounding_error(adapter: Adapter, tensors: dict[str, torch.Tensor]) -> float:
    """Relative error that the type on disk makes in the whole update."""
    error = target = 0.0
    for module in adapter.modules:
        factors = adapter[module]
        down, up = (tensors[f"base_model.model.{module}.lora_{half}.weight"].float() for half in "AB")
        part = compare(down[None], up[None], factors.down[None], factors.scale * factors.up[None])
        error, target = error + float(part.error.sum()), target + float(part.target.sum())
    return (error / target) ** 0.5 if target else 0.0


def card_of(adapter: Adapter, name: str) -> str:
    """A model card as the hub expects it: what was merged, how, and how close it is to the exact sum."""
    front = {"library_name": "peft", "tags": ["lora", "brickyard"]}
    if adapter.base_model:
        front = {"base_model": adapter.base_model, **front}
    lines = ["---", yaml.safe_dump(front, sort_keys=False, allow_unicode=True).strip(), "---", "", f"# {name}", ""]
    if (report := adapter.report) is not None:
        front_parameters = ", ".join(f"{key}={value}" for key, value in report.parameters.items())
        lines += [f"Merged with `{report.method}` ({front_parameters}, seed {report.seed}) by Brickyard.", ""]
        lines += ["| source | weight | rank | sha256 |", "|---|---|---|---|"]
        lines += [
            f"| {s.name} | {s.weight:g} | {', '.join(map(str, s.ranks))} | `{s.sha256}` |" for s in report.sources
        ]
        lines += ["", "Against the exact weighted sum of the sources: " + fidelity_line(report), ""]
    return "\n".join(lines)


def fidelity_line(report: object) -> str:
    """Relative error, norm ratio and cosine in words."""
    return (
        f"relative error {report.relative_error:.4g}, norm ratio {report.norm_ratio:.4g}, "  # type: ignore[attr-defined]
        f"cosine {report.cosine:.4g}. `recipe.yaml` makes it again."  # type: ignore[attr-defined]
    )
