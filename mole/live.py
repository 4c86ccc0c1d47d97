"""One live layer: a frozen linear with weighted units beside it, attached to a model and detached without a trace.

    y = W x + B · (w ⊙ (A x))

A (units, d_in) and B (d_out, units) are the stacked factors of all adapters in the pool; w is one weight per unit and
per batch row. So every row of a batch runs its own variant: weight 0 is the base, 1 on one adapter's units is that
adapter, w_j on several is their weighted sum, 0 on a single unit mutes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lego.errors import AdapterError
from mole.pool import LivePool, Weighting

__all__ = ["Live", "LivePool", "Weighting", "attach", "check_fit"]


class Branch:
    """The units beside one linear layer, called by PyTorch after the layer's own forward."""

    __slots__ = ("down", "live", "module", "up", "weights")

    def __init__(self, live: Live, module: str, down: Tensor, up: Tensor, weights: Tensor | None) -> None:
        """The units that take part.

        Args:
            live: knows how many tokens a row has.
            module: the layer's name, for messages.
            down: Aᵀ, (d_in, units).
            up: Bᵀ, (units, d_out).
            weights: (rows, 1, units), or None for weight 1 on every unit in every row.
        """
        self.live, self.module, self.down, self.up, self.weights = live, module, down, up, weights

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """``output + (w ⊙ (x Aᵀ)) Bᵀ``; the output itself is overwritten only where no gradient is recorded."""
        x, down, up = inputs[0], self.down, self.up
        flat = x.reshape(-1, down.shape[0])
        hidden = torch.mm(flat.to(down.device, down.dtype), down)
        if self.weights is not None:
            hidden = self._weigh(hidden, x.shape[:-1])
        if output.dtype != up.dtype or not output.is_contiguous():
            return output + torch.mm(hidden, up).view(output.shape).to(output.dtype)
        result = output.view(-1, up.shape[1])
        if torch.is_grad_enabled():
            return torch.addmm(result, hidden, up).view(output.shape)
        result.addmm_(hidden, up)
        return output

    def _weigh(self, hidden: Float[Tensor, "places units"], shape: torch.Size) -> Float[Tensor, "places units"]:
        assert self.weights is not None
        rows = self.weights.shape[0]
        # Some models flatten rows and tokens before a layer, in order; experts get tokens in an order of their own.
        flattened = len(shape) == 1 and shape[0] == rows * self.live.tokens and "expert" not in self.module
        if flattened or (len(shape) == 2 and shape[0] == rows):
            return (hidden.view(rows, -1, hidden.shape[1]) * self.weights).view_as(hidden)
        raise AdapterError(
            f"got an input of shape {tuple(shape)} for {rows} rows of weights",
            self.module,
            "Rows with different weights need inputs of shape (rows, tokens, features): run one variant at a time.",
        )


class Live:
    """A pool beside the layers of a model, in effect inside a ``with`` block; outside of it the model is the bare base.

    No parameter, buffer or key of the model ever changes, and when the block ends, also by an error, no hook is left.
    Entering is cheap enough to do around every forward pass, so that several users can take turns on one model.
    """

    def __init__(self, model: nn.Module, pool: LivePool) -> None:
        """Find the layers; the weights are 0 everywhere until `set_rows`, and nothing is changed yet.

        Raises:
            AdapterError: when a module of the pool is not a linear layer of the model with that shape.
        """
        self.pool = pool
        self.tokens = 0
        self._model = model
        self._layers = find_layers(model, pool)
        self._factors = {
            module: (down.to(device := device_of(self._layers[module], pool.device)), up.to(device))
            for module, (down, up) in pool.modules.items()
        }
        self._branches: dict[str, Branch] = {}
        self._handles: dict[str, RemovableHandle] = {}
        self._watch: RemovableHandle | None = None

    def __enter__(self) -> Live:
        self._watch = self._model.register_forward_pre_hook(self._note_tokens, with_kwargs=True)
        for branch in self._branches.values():
            self._hook(branch)
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()
        if self._watch is not None:
            self._watch.remove()
            self._watch = None

    def set_rows(self, weights: Mapping[str, Float[Tensor, "rows units"]]) -> None:
        """Weights of the next batches. Units of weight 0 in every row cost nothing, nor does a module without others.

        Args:
            weights: from `LivePool.row_weights`; a missing module gets weight 0. Tensors that require a gradient keep
                it, and then all their units take part.
        """
        self.clear()
        for module, given in weights.items():
            self.set_module(module, given)

    def set_module(self, module: str, weights: Float[Tensor, "rows units"]) -> None:
        """Weights of one module, as `set_rows` does for all. A gate may call this while the model runs.

        Raises:
            AdapterError: when the pool has no such module or another number of units in it.
        """
        if module not in self._layers:
            raise AdapterError("is not a module of the loaded adapters", module)
        down, up = self._factors[module]
        if weights.dim() != 2 or weights.shape[1] != up.shape[0]:
            raise AdapterError(f"weights have shape {tuple(weights.shape)} for {up.shape[0]} units", module)
        if not weights.requires_grad:
            active = (weights != 0).any(dim=0)
            if not bool(active.any()):
                self._drop(module)
                return
            if not bool(active.all()):
                kept = active.nonzero().flatten()
                weights, kept = weights[:, kept], kept.to(down.device)
                down, up = down[:, kept].contiguous(), up[kept]
            if bool((weights == weights[:1]).all()):
                # The same in every row: fold them in once instead of multiplying at every step.
                same = weights[0].to(up.device)
                up = up if bool((same == 1).all()) else (same[:, None] * up.float()).to(up.dtype)
                self._put(Branch(self, module, down, up, None))
                return
        self._put(Branch(self, module, down, up, weights.to(down.device, down.dtype).unsqueeze(1)))

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

    def _note_tokens(self, model: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        """How many tokens each row of this pass has."""
        given = next((named[name] for name in ("input_ids", "inputs_embeds") if named.get(name) is not None), None)
        given = inputs[0] if given is None and inputs else given
        self.tokens = given.shape[1] if isinstance(given, Tensor) and given.dim() > 1 else 0

    def _put(self, branch: Branch) -> None:
        self._drop(branch.module)
        self._branches[branch.module] = branch
        if self._watch is not None:
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
        AdapterError: when a module of the pool is not a linear layer of the model with that shape.
    """
    return Live(model, pool)


def find_layers(model: nn.Module, pool: LivePool) -> dict[str, nn.Linear]:
    """The model's layer for each module of the pool.

    Raises:
        AdapterError: naming the adapter, the module and both shapes, when one is missing or different.
    """
    layers = {name: layer for name, layer in model.named_modules() if name in pool.modules}
    found: dict[str, nn.Linear] = {}
    for module, (down, up) in pool.modules.items():
        reason = check_fit(layers.get(module), down.shape[0], up.shape[1])
        if reason:
            owner = pool.names[pool.owners(module)[0]]
            raise AdapterError(f"module {module} {reason}", owner, "It was made for another base model.")
        found[module] = layers[module]  # type: ignore[assignment]  # check_fit has seen that it is one
    return found


def device_of(layer: nn.Module, otherwise: torch.device) -> torch.device:
    """Where a layer computes: in a model spread over devices each has its own, and one whose weights wait elsewhere says so."""
    told = getattr(getattr(layer, "_hf_hook", None), "execution_device", None)
    if told is not None:
        return torch.device(told)
    weight = layer.get_parameter("weight")
    return otherwise if weight.device.type == "meta" else weight.device


def check_fit(layer: nn.Module | None, d_in: int, d_out: int) -> str | None:
    """Why factors of this shape cannot run beside a layer; None when they can."""
    if layer is None:
        return f"({d_out} × {d_in}) is not in the model"
    if not isinstance(layer, nn.Linear):
        return f"({d_out} × {d_in}) is a {type(layer).__name__} in the model, not a linear layer"
    if (layer.in_features, layer.out_features) != (d_in, d_out):
        return f"is {d_out} × {d_in} in the adapter but {layer.out_features} × {layer.in_features} in the model"
    return None
