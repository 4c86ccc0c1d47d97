"""One live layer: a frozen linear or convolution with weighted units beside it, attached to a model and detached without a trace.

    y = W x + B · (w ⊙ (A x))

A (units, d_in) and B (d_out, units) are the stacked factors of all adapters in the pool; w is one weight per unit and
per batch row. So every row of a batch runs its own variant: weight 0 is the base, 1 on one adapter's units is that
adapter, w_j on several is their weighted sum, 0 on a single unit mutes it. A batch may hold the rows several times over,
as classifier-free guidance makes it: [negative prompts; prompts].
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lego.errors import AdapterError
from mole.branch import Branch, branch_for
from mole.pool import LivePool, Weighting, written

__all__ = ["Live", "LivePool", "Weighting", "attach", "check_fit"]

GIVEN = ("input_ids", "inputs_embeds", "sample", "hidden_states")
"""Names under which models are given their samples: language models and text encoders, UNets, transformers that denoise."""


class Live:
    """A pool beside the layers of a model, in effect inside a ``with`` block; outside of it the model is the bare base.

    No parameter, buffer or key of the model ever changes, and when the block ends, also by an error, no hook is left.
    Entering is cheap enough to do around every forward pass, so that several users can take turns on one model.
    """

    def __init__(self, model: nn.Module, pool: LivePool) -> None:
        """Find the layers; the weights are 0 everywhere until `set_rows`, and nothing is changed yet.

        Raises:
            AdapterError: when a module of the pool is not a linear layer or convolution of the model with that shape.
        """
        self.pool = pool
        self.samples = self.tokens = 0
        self._model = model
        self._layers = find_layers(model, pool)
        self._factors = {module: self._place(module, *factors) for module, factors in pool.modules.items()}
        self._branches: dict[str, Branch] = {}
        self._handles: dict[str, RemovableHandle] = {}
        self._watches: list[RemovableHandle] = []

    def __enter__(self) -> Live:
        self.samples = self.tokens = 0
        for _, part in running_parts(self._model):
            self._watches.append(part.register_forward_pre_hook(self._note_pass, with_kwargs=True))
        for branch in self._branches.values():
            self._hook(branch)
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()
        for handle in self._watches:
            handle.remove()
        self._watches.clear()

    def set_rows(self, weights: Mapping[str, Float[Tensor, "rows units"]]) -> None:
        """Weights of the next batches. Units of weight 0 in every row cost nothing, nor does a module without others.

        Args:
            weights: from `LivePool.row_weights`; a missing module gets weight 0. Tensors that require a gradient keep
                it, and then all their units take part.
        """
        self.clear()
        for module, given in weights.items():
            self.set_module(module, given)

    def set_module(self, module: str, weights: Float[Tensor, "rows units"], passing: bool = False) -> None:
        """Weights of one module, as `set_rows` does for all. A gate may call this while the model runs.

        Args:
            module: of the pool.
            weights: one for every unit.
            passing: whether they hold for one pass only, so that looking for units without weight costs more than it saves.

        Raises:
            AdapterError: when the pool has no such module or another number of units in it.
        """
        if module not in self._layers:
            raise AdapterError("is not a module of the loaded adapters", module)
        down, up = self._factors[module]
        kind = branch_for(self._layers[module])
        if weights.dim() != 2 or weights.shape[1] != up.shape[0]:
            raise AdapterError(f"weights have shape {tuple(weights.shape)} for {up.shape[0]} units", module)
        if not weights.requires_grad and not passing:
            active = (weights != 0).any(dim=0)
            if not bool(active.any()):
                self._drop(module)
                return
            if not bool(active.all()):
                kept = active.nonzero().flatten()
                weights, kept = weights[:, kept], kept.to(down.device)
                down, up = down.index_select(kind.AXIS, kept), up[kept]
            if bool((weights == weights[:1]).all()):
                # The same in every row: fold them in once instead of multiplying at every step.
                same = weights[0].to(up.device)
                up = up if bool((same == 1).all()) else (same[:, None] * up.float()).to(up.dtype)
                self._put(kind(self, module, down, up, None))
                return
        self._put(kind(self, module, down, up, weights))

    def keep_rows(self, rows: Tensor) -> None:
        """Go on with some of the batch's rows only, in the order given.

        Args:
            rows: indices into the present rows.
        """
        for branch in self._branches.values():
            if branch.weights is not None:
                branch.weights = branch.weights[rows.to(branch.weights.device)]

    def clear(self) -> None:
        """Weight 0 everywhere."""
        for module in list(self._branches):
            self._drop(module)

    @property
    def active(self) -> tuple[str, ...]:
        """The modules in which some unit takes part."""
        return tuple(self._branches)

    def _note_pass(self, part: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        """How many samples this pass has, and how many tokens each of them."""
        given = next((named[name] for name in GIVEN if named.get(name) is not None), None)
        given = inputs[0] if given is None and inputs else given
        shape = given.shape if isinstance(given, Tensor) and given.dim() > 1 else (0, 0)
        self.samples, self.tokens = shape[0], shape[1] if len(shape) < 4 else 0

    def _place(self, module: str, down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        """Factors where the layer computes, as its branch multiplies with them."""
        layer = self._layers[module]
        device = device_of(self._model, module, self.pool.device)
        return branch_for(layer).lay_out(down.to(device), up.to(device), layer)

    def _put(self, branch: Branch) -> None:
        self._drop(branch.module)
        self._branches[branch.module] = branch
        if self._watches:
            self._hook(branch)

    def _hook(self, branch: Branch) -> None:
        self._handles[branch.module] = self._layers[branch.module].register_forward_hook(branch)

    def _drop(self, module: str) -> None:
        if handle := self._handles.pop(module, None):
            handle.remove()
        self._branches.pop(module, None)


def attach(model: nn.Module, pool: LivePool) -> Live:
    """The pool beside a model: ``with attach(model, pool) as live: live.set_rows(weights); model(...)``.

    Raises:
        AdapterError: when a module of the pool is not a linear layer or convolution of the model with that shape.
    """
    return Live(model, pool)


def running_parts(model: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The model, or its parts where it only holds them, as a pipeline's UNet and text encoders have no common forward pass.

    Args:
        model: perhaps a part already.
        name: of that part.
    """
    if type(model).forward is not nn.Module.forward:
        yield name, model
        return
    for key, part in model.named_children():
        yield from running_parts(part, f"{name}.{key}" if name else key)


def find_layers(model: nn.Module, pool: LivePool) -> dict[str, nn.Linear | nn.Conv2d]:
    """The model's layer for each module of the pool.

    Raises:
        AdapterError: naming the adapter, the module and both shapes, when one is missing or different.
    """
    layers = {name: layer for name, layer in model.named_modules() if name in pool.modules}
    found: dict[str, nn.Linear | nn.Conv2d] = {}
    for module, (down, up) in pool.modules.items():
        reason = check_fit(layers.get(module), down.shape[0], up.shape[1], pool.kernels[module])
        if reason:
            owner = pool.names[pool.owners(module)[0]]
            raise AdapterError(f"module {module} {reason}", owner, "It was made for another base model.")
        found[module] = layers[module]  # type: ignore[assignment]  # check_fit has seen that it is one
    return found


def device_of(model: nn.Module, module: str, otherwise: torch.device) -> torch.device:
    """Where a layer computes: in a model spread over devices each has its own; one whose weights wait elsewhere, alone or with the
    part of the model that it is in, says so."""
    names = module.split(".")
    for end in range(len(names), -1, -1):
        part = model.get_submodule(".".join(names[:end]))
        if (told := getattr(getattr(part, "_hf_hook", None), "execution_device", None)) is not None:
            return torch.device(told)
    weight = model.get_submodule(module).get_parameter("weight")
    return otherwise if weight.device.type == "meta" else weight.device


def check_fit(layer: nn.Module | None, d_in: int, d_out: int, kernel: tuple[int, ...] = ()) -> str | None:
    """Why factors of this shape cannot run beside a layer; None when they can.

    Args:
        layer: of the model; None where it has none of that name.
        d_in, d_out: of the factors; a convolution's d_in is flattened.
        kernel: of a convolution's factors. One of 1 × 1 is a matrix: it fits beside a linear layer, and a matrix beside it.
    """
    shape = written(d_in, d_out, kernel)
    if layer is None:
        return f"({shape}) is not in the model"
    if isinstance(layer, nn.Linear):
        own = written(layer.in_features, layer.out_features)
    elif isinstance(layer, nn.Conv2d):
        if layer.groups > 1:
            return f"({shape}) is a convolution in {layer.groups} groups in the model, beside which units cannot run"
        own = written(layer.in_channels * math.prod(layer.kernel_size), layer.out_channels, layer.kernel_size)
    else:
        return f"({shape}) is a {type(layer).__name__} in the model, neither a linear layer nor a convolution"
    return None if shape == own else f"is {shape} in the adapter but {own} in the model"
