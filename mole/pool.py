"""The units of several adapters, stacked by module, and the weights that variants put on them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lego.adapter import Adapter
from lego.errors import AdapterError
from lego.unitset import NO_UNITS, UnitId, UnitSet, indices


@dataclass(frozen=True)
class Weighting:
    """What one variant puts on the pool.

    Attributes:
        adapters: (adapter's key in the pool, weight on its units); an adapter that is not named has weight 0.
        muted: units that get weight 0 all the same, as a `lego.unitset.UnitSet` or any set of (adapter's key, module, index of the
            unit within that adapter).
        gates: key of the gates that multiply these weights, sample by sample (MoLE); None for weights as they are.
        masked: experts that the gates leave out.
        scaled: units whose weight is multiplied by a factor.
    """

    adapters: tuple[tuple[str, float], ...] = ()
    muted: Set[UnitId] = NO_UNITS
    gates: str | None = None
    masked: tuple[str, ...] = ()
    scaled: tuple[tuple[UnitSet, float], ...] = ()

    @property
    def factors(self) -> list[tuple[UnitSet, float]]:
        """Units and what multiplies the weight that their adapter gives them."""
        return [*self.scaled, *([(UnitSet.of(self.muted), 0.0)] if self.muted else [])]


class LivePool:
    """The stacked factors of several adapters, module by module, ready for a model.

    ``((x @ down) * weights) @ up`` is the sum of the adapters' updates of x, each unit weighted on its own.
    The adapters' scales are folded into ``up`` in fp32, before the cast.

    Attributes:
        modules: ``down`` = Aᵀ (d_in, units) and ``up`` = Bᵀ (units, d_out) of every module that some adapter adapts. They lie
            transposed so that rows of x multiply them as they are, the fastest order for the few rows of a decoding step. A
            convolution's A is flattened, d_in = in · kh · kw.
        kernels: (kh, kw) of every module; empty for one of matrices.
        keys: the adapters' keys, in the order of their units.
    """

    def __init__(self, adapters: Mapping[str, Adapter], device: torch.device | str, dtype: torch.dtype) -> None:
        """Read every module of the adapters.

        Args:
            adapters: by the key under which `Weighting` names them.
            device, dtype: of the model the pool will be attached to.

        Raises:
            AdapterError: when two adapters disagree about the shape of a module.
        """
        self.keys = tuple(adapters)
        self.device, self.dtype = torch.device(device), dtype
        self.modules: dict[str, tuple[Float[Tensor, "d_in units"], Float[Tensor, "units d_out"]]] = {}
        self.kernels: dict[str, tuple[int, ...]] = {}
        self._slices: dict[str, dict[str, slice]] = {}
        self.names = {key: adapter.name for key, adapter in adapters.items()}
        for module in dict.fromkeys(name for adapter in adapters.values() for name in adapter.modules):
            self._stack(module, {key: adapter for key, adapter in adapters.items() if module in adapter.modules})

    def _stack(self, module: str, adapters: Mapping[str, Adapter]) -> None:
        downs: list[Tensor] = []
        ups: list[Tensor] = []
        slices, start = {}, 0
        first, expected = next(iter(adapters.values())), ""
        for key, adapter in adapters.items():
            factors = adapter[module]
            shape = written(factors.down.shape[1], factors.up.shape[0], factors.kernel)
            expected = expected or shape
            if shape != expected:
                raise AdapterError(
                    f"module {module} is {shape} here but {expected} in {first.name}",
                    adapter.name,
                    "The two adapters belong to different bases.",
                )
            self.kernels[module] = factors.kernel
            downs.append(factors.down.T)
            ups.append((factors.scale * factors.up).T)
            slices[key] = slice(start, start := start + factors.rank)
        self.modules[module] = self._cast(torch.cat(downs, dim=1)), self._cast(torch.cat(ups))
        self._slices[module] = slices

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, self.dtype).contiguous()

    def units(self, adapter: str, module: str) -> slice:
        """Where an adapter's units of a module lie in the pool; an empty slice where it does not adapt the module.

        Raises:
            AdapterError: when the adapter is not in the pool.
        """
        if adapter not in self.names:
            raise AdapterError("is not in the pool of loaded adapters", adapter, f"Loaded: {', '.join(self.keys)}.")
        return self._slices.get(module, {}).get(adapter, slice(0, 0))

    def owners(self, module: str) -> list[str]:
        """The adapters that have units in a module, in the order of their units."""
        return list(self._slices[module])

    def owner_of_units(self, module: str) -> list[str]:
        """The adapter of each unit of a module."""
        return [key for key, part in self._slices[module].items() for _ in range(part.stop - part.start)]

    @property
    def nbytes(self) -> int:
        """Memory of the stacked factors."""
        return sum(t.nbytes for pair in self.modules.values() for t in pair)

    def row_weights(self, variants: Sequence[Weighting]) -> dict[str, Float[Tensor, "rows units"]]:
        """One weight for every unit and every batch row.

        Args:
            variants: the weighting of each row.

        Returns:
            A tensor in fp32 on the CPU for every module of the pool.

        Raises:
            AdapterError: when a weighting names an adapter twice, or an adapter or unit that is not in the pool.
        """
        given = [self._by_key(variant) for variant in variants]
        by_adapter = {key: torch.tensor([row.get(key, 0.0) for row in given]) for key in self.keys}
        weights: dict[str, Tensor] = {}
        for module, slices in self._slices.items():
            own = [by_adapter[key][:, None].expand(-1, part.stop - part.start) for key, part in slices.items()]
            weights[module] = torch.cat(own, dim=1)
        for row, variant in enumerate(variants):
            for units, factor in variant.factors:
                for key, module, bits in units.parts:
                    weights[module][row, self._places(key, module, bits)] *= factor
        return weights

    def _places(self, key: str, module: str, bits: int) -> list[int]:
        """Where some of an adapter's units lie in a module.

        Raises:
            AdapterError: when it has no such units.
        """
        part = self.units(key, module)
        if bits >> (part.stop - part.start):
            raise AdapterError(f"has no unit {bits.bit_length() - 1} in module {module}", self.names[key])
        return [part.start + index for index in indices(bits)]

    def _by_key(self, variant: Weighting) -> dict[str, float]:
        given = dict(variant.adapters)
        if len(given) != len(variant.adapters):
            raise AdapterError("a variant names the same adapter twice", ", ".join(key for key, _ in variant.adapters))
        for key in given:
            self.units(key, "")
        return given


def written(d_in: int, d_out: int, kernel: tuple[int, ...] = ()) -> str:
    """A module's shape for people: ``320 × 160``, ``320 × 160 × 3 × 3``; a kernel of 1 × 1 makes it a matrix."""
    size = math.prod(kernel)
    return " × ".join(map(str, (d_out, d_in // size, *(kernel if size > 1 else ()))))
