"""Sets of units, small whatever their size: one bit for each unit of a module."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from functools import cached_property

from lego.adapter import Adapter
from lego.errors import AdapterError

UnitId = tuple[str, str, int]
"""One unit: its adapter's key, its module's name, its row in that adapter's A."""

MOST = 1 << 16
"""Units that one adapter has in one module at most: a larger index is a mistake, and would be a huge number of bits."""


@dataclass(frozen=True, eq=False)
class UnitSet(Set[UnitId]):
    """A frozen set of units. Equal to a ``frozenset`` of the same units, and hashed as one.

    Attributes:
        parts: (adapter, module, bits), sorted, none empty: bit i stands for the unit of row i.
    """

    parts: tuple[tuple[str, str, int], ...] = ()

    @classmethod
    def of(cls, units: Iterable[UnitId]) -> UnitSet:
        """These units.

        Raises:
            AdapterError: for an index that no unit can have.
        """
        if isinstance(units, UnitSet):
            return units
        bits: dict[tuple[str, str], int] = {}
        for adapter, module, index in units:
            if not 0 <= index < MOST:
                raise AdapterError(f"has no unit {index} in module {module}", adapter)
            bits[adapter, module] = bits.get((adapter, module), 0) | 1 << index
        return cls.packed(bits)

    @classmethod
    def _from_iterable(cls, it: Iterable[UnitId]) -> UnitSet:  # type: ignore[override]
        return cls.of(it)

    @classmethod
    def packed(cls, bits: Mapping[tuple[str, str], int]) -> UnitSet:
        """The units whose bits are set, by adapter and module."""
        return cls(tuple((*place, found) for place, found in sorted(bits.items()) if found))

    @classmethod
    def every(cls, adapters: Mapping[str, Adapter]) -> UnitSet:
        """All units of some adapters, by key."""
        return cls.packed(
            {(key, m): (1 << spec.rank) - 1 for key, adapter in adapters.items() for m, spec in adapter.modules.items()}
        )

    @cached_property
    def bits(self) -> dict[tuple[str, str], int]:
        """The bits by adapter and module."""
        return {(adapter, module): found for adapter, module, found in self.parts}

    def __contains__(self, unit: object) -> bool:
        match unit:
            case (str(adapter), str(module), int(index)) if 0 <= index < MOST:
                return bool(self.bits.get((adapter, module), 0) >> index & 1)
        return False

    def __iter__(self) -> Iterator[UnitId]:
        for adapter, module, found in self.parts:
            yield from ((adapter, module, index) for index in indices(found))

    def __len__(self) -> int:
        return sum(found.bit_count() for _, _, found in self.parts)

    def __or__(self, other: Iterable[UnitId]) -> UnitSet:  # type: ignore[override]
        bits = dict(self.bits)
        for adapter, module, found in UnitSet.of(other).parts:
            bits[adapter, module] = bits.get((adapter, module), 0) | found
        return UnitSet.packed(bits)

    def __sub__(self, other: Iterable[UnitId]) -> UnitSet:  # type: ignore[override]
        taken = UnitSet.of(other).bits
        return UnitSet.packed({place: found & ~taken.get(place, 0) for place, found in self.bits.items()})

    def __and__(self, other: Iterable[UnitId]) -> UnitSet:  # type: ignore[override]
        kept = UnitSet.of(other).bits
        return UnitSet.packed({place: found & kept.get(place, 0) for place, found in self.bits.items()})

    @cached_property
    def _hashed(self) -> int:
        return self._hash()

    def __hash__(self) -> int:
        return self._hashed

    def __reduce__(self) -> tuple[type[UnitSet], tuple[object, ...]]:
        return UnitSet, (self.parts,)

    def __deepcopy__(self, memo: object) -> UnitSet:
        return self

    def __repr__(self) -> str:
        return f"UnitSet({len(self)} units in {len(self.parts)} modules)"


NO_UNITS = UnitSet()


def indices(bits: int) -> list[int]:
    """Which bits are set, ascending."""
    return [index for index in range(bits.bit_length()) if bits >> index & 1]
