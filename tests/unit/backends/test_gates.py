"""Trained gates in the library: found under the hash of what they hold, kept across processes, loaded once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from backends import gates as store
from backends.bases import TextBase
from backends.variants import Variant, routes_of
from lego import AdapterError
from mole.gate import BASE, GateConfig, Gates
from mole.live import Weighting
from mole.recipe import GateRecipe
from mole.sites import find_sites
from tests.naive_gates import KINDS, pool_for, randomise, some_adapters
from tests.tiny import tiny_base, tiny_entry


@pytest.fixture
def keys(tmp_path: Path) -> list[str]:
    return [
        tiny_entry(tmp_path / name, seed, rank, alpha=rank, kinds=kinds).key
        for name, (seed, rank, kinds) in KINDS.items()
    ]


def add(base: TextBase, keys: list[str], seed: int = 0, name: str = "my gates", **config: Any) -> store.GateEntry:
    adapters = dict(zip(keys, some_adapters().values(), strict=True))
    pool, made = pool_for(adapters), GateConfig(**config)
    sites = find_sites(base.model, pool.modules, made.granularity, lambda: base.model(torch.tensor([[1, 2]])))
    recipe = GateRecipe.check({"sources": keys, "data": ["rows"], "gates": config}, "test")
    gates = randomise(Gates.fresh(made, keys, sites, pool), seed)
    return store.add_trained(name, gates, base, recipe, {"step": torch.tensor(4), **gates.state_dict()})


def test_trained_gates_are_found_by_key_also_by_another_process(
    base: TextBase, keys: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = add(base, keys)
    assert (entry.name, entry.source, entry.experts) == ("my-gates", "trained", tuple(keys))
    assert store.entry(entry.key) == entry
    monkeypatch.setattr(store, "_entries", {})
    assert store.entry(entry.key) == entry
    with pytest.raises(AdapterError, match=r"0123456789ab: there are no gates with this key\. Train or add them first"):
        store.entry("0123456789ab")


def test_the_key_is_of_what_the_gates_hold(base: TextBase, keys: list[str], tmp_path: Path) -> None:
    one, again, other = add(base, keys), add(base, keys), add(base, keys, seed=1)
    assert one.key == again.key
    assert one.key != other.key
    shutil.copytree(one.path, tmp_path / "copy")
    assert store.add_folder(tmp_path / "copy").key == one.key


def test_names_that_no_folder_may_have(base: TextBase, keys: list[str], tmp_path: Path) -> None:
    for seed, name in enumerate(["../../up", "", "a/b\\c", "é" * 300]):
        entry = add(base, keys, seed, name)
        assert tmp_path / "home" / "gates" in entry.path.parents
        assert entry.path.is_dir()


def test_damaged_folders_are_refused(base: TextBase, keys: list[str], tmp_path: Path) -> None:
    entry = add(base, keys)
    (entry.path / "gates.safetensors").write_bytes(b"nothing")
    with pytest.raises(AdapterError, match="is damaged"):
        store.add_folder(entry.path)
    with pytest.raises(AdapterError, match="holds no trained gates"):
        store.add_folder(tmp_path)


def test_loaded_gates_are_kept_and_need_no_gradient(base: TextBase, keys: list[str]) -> None:
    entry = add(base, keys)
    gates = store.loaded(base, entry.key)
    assert gates.experts == tuple(keys)
    assert store.loaded(base, entry.key) is gates
    assert not any(p.requires_grad for p in gates.parameters())


def test_another_base_is_refused(base: TextBase, keys: list[str]) -> None:
    entry, other = add(base, keys), tiny_base(seed=1)
    other.info.__dict__["id"], other.fingerprint = "another", "b" * 64
    with pytest.raises(AdapterError, match=r"my-gates: was trained on the base tiny .*, not on another"):
        store.loaded(other, entry.key)


def test_weightings_and_routes(base: TextBase, keys: list[str]) -> None:
    first, second = add(base, keys, base_expert=True), add(base, keys, seed=1)
    assert first.columns[-1] == BASE
    assert first.weighting((BASE,)) == Weighting(tuple((key, 1.0) for key in keys), gates=first.key, masked=(BASE,))
    gated, masked, other = (
        Variant("gated", first.weighting()), Variant("masked", first.weighting((keys[0],))), Variant("other", second.weighting())
    )  # fmt: skip
    routes = routes_of(base, [gated, Variant("base"), masked, other, gated, masked])
    found = [(route.gates, list(route.rows), tuple(route.masked)) for route in routes]
    assert found == [
        (store.loaded(base, first.key), [0, 4], ()),
        (store.loaded(base, first.key), [2, 5], (keys[0],)),
        (store.loaded(base, second.key), [3], ()),
    ]
    assert routes_of(base, [Variant("base")] * 2) == []


def test_the_same_training_mends_what_was_damaged_since(base: TextBase, keys: list[str]) -> None:
    first = add(base, keys)
    weights = first.path / "gates.safetensors"
    sound = weights.read_bytes()
    weights.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    assert add(base, keys).key == first.key
    assert weights.read_bytes() == sound
