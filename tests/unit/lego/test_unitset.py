"""Sets of units behave as frozensets of their ids, and stay small."""

from __future__ import annotations

import copy
import pickle
import random
from itertools import product

import pytest

from lego import AdapterError
from lego.unitset import UnitSet
from tests.conftest import mixed_adapters

ALL = [(key, module, index) for key, module, index in product("ab", ("m", "n", "o"), (0, 1, 2, 63, 64, 200))]


def drawn(seed: int) -> frozenset:
    return frozenset(random.Random(seed).sample(ALL, 15))


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_same_as_a_frozenset(seed: int) -> None:
    one, two = drawn(seed), drawn(seed + 100)
    packed, other = UnitSet.of(one), UnitSet.of(two)
    assert packed == one
    assert hash(packed) == hash(one)
    assert packed in {one}
    assert (packed | other, packed & other, packed - other) == (one | two, one & two, one - two)
    assert len(packed) == len(one)
    assert list(packed) == sorted(one)
    assert [unit in packed for unit in ALL] == [unit in one for unit in ALL]
    assert pickle.loads(pickle.dumps(packed)) == copy.deepcopy(packed) == packed


@pytest.mark.parametrize("thing", [None, "ab", ("a", "m"), ("a", "m", -1), ("a", "m", "0"), ("a", "m", 10**30)])
def test_what_is_no_unit_is_not_in_it(thing: object) -> None:
    assert thing not in UnitSet.of([("a", "m", 0)])


@pytest.mark.parametrize("index", [-1, 10**12])
def test_an_index_that_no_unit_has_is_refused(index: int) -> None:
    with pytest.raises(AdapterError, match=f"a: has no unit {index} in module m"):
        UnitSet.of([("a", "m", index)])


def test_every_unit_of_adapters() -> None:
    adapters = {adapter.name: adapter for adapter in mixed_adapters()}
    every = {(name, m, i) for name, a in adapters.items() for m, spec in a.modules.items() for i in range(spec.rank)}
    assert UnitSet.every(adapters) == every


def test_thousands_of_units_take_a_few_kilobytes() -> None:
    units = UnitSet.of(("a", f"layers.{layer}.q_proj", index) for layer in range(50) for index in range(100))
    assert len(units) == 5000
    assert len(pickle.dumps(units)) < 5000
