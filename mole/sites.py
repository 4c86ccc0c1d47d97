"""Where gates sit: one for every module, layer, block or for the network (MoLE, arXiv 2404.13628, table 9)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from lego.errors import AdapterError
from mole.live import running_parts

Granularity = Literal["module", "layer", "block", "network"]


@dataclass(frozen=True)
class Site:
    """One gate's place in a model.

    Attributes:
        name: the module, layer or block that it gates; empty for the network.
        modules: the adapted modules whose LoRAs it mixes, in the order in which the model runs them.
        readers: those of them from whose common input it decides: the first one, and all that get the very same tensor.
        places: how many places (tokens, pixels) the first reader's input and output have, where they always have as many, as in
            a UNet; a flattening gate reads them side by side.
    """

    name: str
    modules: tuple[str, ...]
    readers: tuple[str, ...]
    places: tuple[int, int] = field(default=(1, 1), compare=False)


def find_sites(
    model: nn.Module, modules: Iterable[str], granularity: Granularity, run: Callable[[], object]
) -> tuple[Site, ...]:
    """The places of all gates, in the order in which the model reaches them.

    Args:
        model: the frozen base.
        modules: the adapted modules.
        granularity: a gate for each ``module``, for each ``layer`` (a part of a block: attention, feed-forward), for each
            ``block``, or for the ``network``. A UNet's blocks are its transformer blocks and resnets.
        run: one forward pass of the model, on anything: it shows in which order modules run and which share an input.

    Raises:
        AdapterError: when a module takes no part in that pass.
    """
    wanted = set(modules)
    calls = trace_calls(model, wanted, run)
    if missing := sorted(wanted - set(calls)):
        raise AdapterError(f"module {missing[0]} takes no part in a forward pass", None, "It cannot be gated.")
    groups: dict[str, list[str]] = {}
    blocks, tops = block_names(model), {name for name, _ in running_parts(model)}
    for module in calls:
        groups.setdefault(place(module, blocks, granularity, tops), []).append(module)
    return tuple(
        Site(
            name,
            tuple(group),
            tuple(m for m in group if calls[m].given is calls[group[0]].given),
            calls[group[0]].places,
        )
        for name, group in groups.items()
    )


class Call(NamedTuple):
    """A module's first call: its input, and how many places that and its output have."""

    given: Tensor
    places: tuple[int, int]


def trace_calls(model: nn.Module, modules: set[str], run: Callable[[], object]) -> dict[str, Call]:
    """The first call of each module, in their order."""
    seen: dict[str, Call] = {}

    def watch(name: str) -> Callable[..., None]:
        def note(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            ends = (inputs[0], output)
            sizes = (x.shape[2:] if isinstance(layer, nn.Conv2d) else x.shape[1:-1] for x in ends)
            seen.setdefault(name, Call(inputs[0], tuple(map(math.prod, sizes))))  # type: ignore[arg-type]

        return note

    handles = [m.register_forward_hook(watch(name)) for name, m in model.named_modules() if name in modules]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return seen


def place(module: str, blocks: set[str], granularity: Granularity, tops: set[str]) -> str:
    """The gate to which a module belongs. What lies in no block is one with its siblings, or alone as an output projection.

    Args:
        module: its name.
        blocks: from `block_names`.
        granularity: of the gates.
        tops: the names of the model's parts that run by themselves; what lies right in one has no siblings.
    """
    if granularity == "module":
        return module
    if granularity == "network":
        return ""
    parts = module.split(".")
    prefixes = [".".join(parts[:n]) for n in range(1, len(parts) + 1)]
    within = [n for n, prefix in enumerate(prefixes) if prefix in blocks]
    if not within:
        parent = ".".join(parts[:-1])
        return module if not parent or parent in tops else parent
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
