"""Where gates sit: one for every module, layer, block or for the network (MoLE, arXiv 2404.13628, table 9)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from lego.errors import AdapterError

Granularity = Literal["module", "layer", "block", "network"]


@dataclass(frozen=True)
class Site:
    """One gate's place in a model.

    Attributes:
        name: the module, layer or block that it gates; empty for the network.
        modules: the adapted modules whose LoRAs it mixes, in the order in which the model runs them.
        readers: those of them from whose common input it decides: the first one, and all that get the very same tensor.
    """

    name: str
    modules: tuple[str, ...]
    readers: tuple[str, ...]


def find_sites(
    model: nn.Module, modules: Iterable[str], granularity: Granularity, run: Callable[[], object]
) -> tuple[Site, ...]:
    """The places of all gates, in the order in which the model reaches them.

    Args:
        model: the frozen base.
        modules: the adapted modules.
        granularity: a gate for each ``module``, for each ``layer`` (a part of a block: attention, feed-forward), for each
            ``block``, or for the ``network``.
        run: one forward pass of the model, on anything: it shows in which order modules run and which share an input.

    Raises:
        AdapterError: when a module takes no part in that pass.
    """
    wanted = set(modules)
    inputs = trace_inputs(model, wanted, run)
    if missing := sorted(wanted - set(inputs)):
        raise AdapterError(f"module {missing[0]} takes no part in a forward pass", None, "It cannot be gated.")
    groups: dict[str, list[str]] = {}
    blocks = block_names(model)
    for module in inputs:
        groups.setdefault(place(module, blocks, granularity), []).append(module)
    return tuple(
        Site(name, tuple(group), tuple(m for m in group if inputs[m] is inputs[group[0]]))
        for name, group in groups.items()
    )


def trace_inputs(model: nn.Module, modules: set[str], run: Callable[[], object]) -> dict[str, Tensor]:
    """The input of each module, in the order of their calls."""
    seen: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[..., None]:
        def note(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            seen.setdefault(name, inputs[0])

        return note

    handles = [m.register_forward_pre_hook(watch(name)) for name, m in model.named_modules() if name in modules]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return seen


def place(module: str, blocks: set[str], granularity: Granularity) -> str:
    """The gate to which a module belongs. What lies in no block is one with its siblings, or alone as an output projection."""
    if granularity == "module":
        return module
    if granularity == "network":
        return ""
    parts = module.split(".")
    prefixes = [".".join(parts[:n]) for n in range(1, len(parts) + 1)]
    within = [n for n, prefix in enumerate(prefixes) if prefix in blocks]
    if not within:
        return ".".join(parts[:-1]) or module
    return prefixes[within[-1] + (granularity == "layer" and within[-1] + 1 < len(prefixes))]


def block_names(model: nn.Module) -> set[str]:
    """The model's blocks: what its authors say must stay on one device, else the items of lists of one class.

    Of blocks within blocks the inner ones: a UNet's up blocks are made of transformer blocks and resnets, as its down blocks are.
    """
    classes = {name for part in model.modules() for name in getattr(part, "_no_split_modules", None) or ()}
    named = {name for name, part in model.named_modules() if type(part).__name__ in classes}
    if named:
        outer = {name[:at] for name in named for at, letter in enumerate(name) if letter == "."}
        return named - outer
    lists = ((name, part) for name, part in model.named_modules() if isinstance(part, nn.ModuleList | nn.Sequential))
    return {
        f"{name}.{key}" if name else key
        for name, part in lists
        if len({type(child) for child in part}) == 1
        for key, child in part.named_children()
        if not isinstance(child, nn.Linear)
    }
