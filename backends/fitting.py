"""Whether an adapter fits a base, under which names its modules are there, and which format can hold it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from lego import Adapter, ModuleSpec
from lego.formats import diffusers, kohya

Shapes = Mapping[str, tuple[int, ...]]


def misfit(modules: Mapping[str, ModuleSpec], shapes: Shapes) -> str | None:
    """Why an adapter does not fit a base, in one sentence; None when it fits.

    Args:
        modules: what the headers tell of the adapter's.
        shapes: of the base's modules, from `backends.bases.module_shapes`.
    """
    missing = [name for name in modules if name not in shapes]
    if missing:
        layers = "linear layers" + " or convolutions" * any(len(shape) > 2 for shape in shapes.values())
        return f"{len(missing)} of its {len(modules)} modules are no {layers} of this base, such as {missing[0]}."
    for name, spec in modules.items():
        kernel = spec.kernel if math.prod(spec.kernel) > 1 else ()  # one of 1 × 1 is a matrix
        if shapes[name] != (spec.d_in, spec.d_out, *kernel):
            own, here = shape_text((spec.d_in, spec.d_out, *kernel)), shape_text(shapes[name])
            return f"It was made for another base: {name} is {own} in it but {here} here."
        if spec.bias:
            return f"It trains a bias in its B ({name}), which can be merged but not run here."
    return None


def shape_text(shape: Sequence[int]) -> str:
    """A module's shape for people: ``24 → 40``, a convolution's ``8 → 16 (3 × 3)``."""
    d_in, d_out, *kernel = shape
    size = f" ({' × '.join(map(str, kernel))})" if kernel else ""
    return f"{d_in // math.prod(kernel)} → {d_out}{size}"


def of_pipeline(adapter: Adapter) -> Adapter:
    """The adapter, or for a PEFT folder of one part of a pipeline the same as an adapter of the pipeline, in diffusers' format."""
    renamed = pipeline_names(adapter.format, adapter.modules)
    if renamed is adapter.modules:
        return adapter
    own = dict(zip(renamed, adapter.modules, strict=True))
    return replace(adapter, modules=renamed, read=lambda module: adapter[own[module]], format="diffusers", config={})


def pipeline_names(format: str, modules: Mapping[str, ModuleSpec]) -> Mapping[str, ModuleSpec]:
    """The modules of one part of a pipeline, which begin as no language model's do, under the names that they have in the pipeline."""
    renamed = {}
    for module, spec in modules.items():
        text = module.startswith("text_model.") or diffusers.CLIP.match(module)
        name = f"text_encoder.{module}" if text else module
        found = None if module.split(".")[0] in diffusers.COMPONENTS else diffusers.canonical(name)
        if format != "peft" or found is None:
            return modules
        renamed[found[0]] = spec
    return renamed


def held_by_kohya(adapter: Adapter) -> bool:
    """Whether kohya's format can hold an adapter: it names Stable Diffusion's modules only, and no biases."""
    return all(kohya.KNOWN.fullmatch(module) and not spec.bias for module, spec in adapter.modules.items())
