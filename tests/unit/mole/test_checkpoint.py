"""Gates on disk: they choose as before, are there whole or not at all, and whatever is damaged or does not fit is told."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lego import AdapterError
from mole import checkpoint
from mole.checkpoint import Base, Expert, check_fit, load_gates, read_config, read_tensors, save_gates
from mole.gate import GateConfig, Gates
from mole.gated import Gated, Route
from mole.live import Weighting
from mole.recipe import GateRecipe
from mole.sites import find_sites
from tests.naive_gates import pool_for, randomise, some_adapters
from tests.processes import UNEVEN, net_trainer
from tests.tiny import tiny_model

PARTS = {"gate_config.json", "gates.safetensors", "training.safetensors", "recipe.yaml", "README.md"}
KEYS = ("first", "second", "third")
IDS = torch.tensor([[3, 1, 4, 1], [5, 9, 2, 6]])


def expert(name: str) -> Expert:
    return Expert(name=name, fingerprint=("0123456789abcdef"[KEYS.index(name)] if name in KEYS else "f") * 64)


BASE, EXPERTS = Base(id="tiny", fingerprint="a" * 64), [expert(key) for key in KEYS]


def some_gates(**config: Any) -> Gates:
    model, pool, made = tiny_model(), pool_for(some_adapters()), GateConfig(**config)
    sites = find_sites(model, pool.modules, made.granularity, lambda: model(IDS))
    return randomise(Gates.fresh(made, KEYS, sites, pool), 5)


def save(folder: Path, **config: Any) -> Gates:
    gates = some_gates(**config)
    recipe = GateRecipe.check({"sources": list(KEYS), "data": ["rows.jsonl"], "gates": config}, "test")
    save_gates(folder, gates, BASE, EXPERTS, recipe, {"step": torch.tensor(3)})
    return gates


def choices(gates: Gates) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model, pool = tiny_model(), pool_for(some_adapters())
    live, route = Gated(model, pool), Route(gates, [0, 1])
    live.set_rows(pool.row_weights([Weighting(tuple((key, 1.0) for key in KEYS))] * 2), [route])
    live.prompt = torch.ones_like(IDS, dtype=torch.bool)
    with torch.no_grad(), live:
        return model(IDS).logits, route.chosen


@pytest.mark.parametrize("granularity", ["module", "layer", "block", "network"])
@pytest.mark.parametrize(
    "more", [{"normalise": "centred"}, {"normalise": "l2", "reads": "hidden", "base_expert": True}]
)
def test_loaded_gates_choose_as_those_that_were_saved(granularity: str, more: dict[str, Any], tmp_path: Path) -> None:
    gates = save(tmp_path / "gates", granularity=granularity, **more)
    assert {path.name for path in (tmp_path / "gates").iterdir()} == PARTS
    loaded = load_gates(tmp_path / "gates", KEYS)
    (logits, chosen), (again, same) = choices(gates), choices(loaded)
    assert torch.equal(logits, again)
    assert chosen.keys() == same.keys()
    assert all(torch.equal(chosen[site], same[site]) for site in chosen)
    assert loaded.config == gates.config
    assert loaded.sites == gates.sites
    assert not any(p.requires_grad for p in loaded.parameters())
    assert load_gates(tmp_path / "gates").experts == tuple(each.fingerprint for each in EXPERTS)


def test_flatten_keeps_its_length(tmp_path: Path) -> None:
    pool = pool_for(some_adapters())
    gates = some_gates(granularity="network")
    flat = Gates.fresh(GateConfig(pooling="flatten"), KEYS, gates.sites, pool, length=4)
    recipe = GateRecipe.check({"sources": list(KEYS), "data": ["x"], "gates": {"pooling": "flatten"}}, "test")
    save_gates(tmp_path / "gates", flat, BASE, EXPERTS, recipe, {"step": torch.tensor(0)})
    assert load_gates(tmp_path / "gates", KEYS).length == 4


def test_what_is_saved_says_where_it_comes_from(tmp_path: Path) -> None:
    save(tmp_path / "gates")
    saved = read_config(tmp_path / "gates")
    assert (saved.base, saved.experts, saved.steps) == (BASE, EXPERTS, 3)
    assert GateRecipe.read(tmp_path / "gates" / "recipe.yaml").gates == saved.recipe.gates
    card = (tmp_path / "gates" / "README.md").read_text()
    assert all(each.fingerprint[:12] in card for each in EXPERTS)


def flip(folder: Path, name: str, at: float) -> None:
    content = bytearray((folder / name).read_bytes())
    content[int(at * (len(content) - 1))] ^= 0x04
    (folder / name).write_bytes(content)


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Other tensors, of which the config has the right hash: someone's own doing, not damage."""
    tensors = load_file(folder / "gates.safetensors")
    change(tensors)
    save_file(tensors, folder / "gates.safetensors")
    hashed = checkpoint.sha256((folder / "gates.safetensors").read_bytes())
    edit(folder, lambda config: config["files"].update({"gates.safetensors": hashed}))


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((folder / "gate_config.json").read_text())
    change(config)
    (folder / "gate_config.json").write_text(json.dumps(config))


def write(folder: Path, text: str) -> None:
    (folder / "gate_config.json").write_text(text)


def truncate(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])


SITE = "model.layers.0"
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda f: truncate(f, "gates.safetensors"), "gates.safetensors: is damaged"),
    "empty": (lambda f: (f / "gates.safetensors").write_bytes(b""), "gates.safetensors: is damaged"),
    "flipped in the header": (lambda f: flip(f, "gates.safetensors", 0.001), "gates.safetensors: is damaged"),
    "flipped in a number": (lambda f: flip(f, "gates.safetensors", 0.7), "gates.safetensors: is damaged"),
    "flipped at the end": (lambda f: flip(f, "gates.safetensors", 1), "gates.safetensors: is damaged"),
    "gone": (lambda f: (f / "gates.safetensors").unlink(), "gates.safetensors: is not a readable safetensors file"),
    "a folder": (
        lambda f: ((f / "gates.safetensors").unlink(), (f / "gates.safetensors").mkdir()), "is not a readable"
    ),
    "missing": (lambda f: rewrite(f, lambda t: t.pop(f"{SITE}.weight")), f"does not fit .*{SITE}.weight"),
    "no spread": (lambda f: rewrite(f, lambda t: t.pop(f"{SITE}.spread")), f"does not fit .*{SITE}.spread"),
    "extra": (lambda f: rewrite(f, lambda t: t.update(x=torch.zeros(2))), "holds x, which its gate_config.json lacks"),
    "shape": (lambda f: rewrite(f, lambda t: t.update({f"{SITE}.mean": torch.zeros(2)})), "does not fit"),
    "scalar": (lambda f: rewrite(f, lambda t: t.update({f"{SITE}.weight": torch.zeros(())})), "does not fit"),
    "nan": (
        lambda f: rewrite(f, lambda t: t[f"{SITE}.weight"][3, 1].fill_(torch.nan)),
        r"numbers that are not finite \(gates.0.weight\)",
    ),
    "not json": (lambda f: write(f, "{"), "gate_config.json: is not JSON"),
    "a list": (lambda f: write(f, "[]"), "gate_config.json: is not the config of gates"),
    "nothing": (lambda f: write(f, ""), "gate_config.json: is not JSON"),
    "not text": (lambda f: (f / "gate_config.json").write_bytes(b"\xff\xfe\x00"), "gate_config.json: "),
    "deep": (lambda f: write(f, "[" * 5000), "gate_config.json: is not JSON"),
    "no base": (lambda f: edit(f, lambda c: c.pop("base")), "gate_config.json: .*base"),
    "no experts": (lambda f: edit(f, lambda c: c.update(experts=[])), "gate_config.json: .*experts"),
    "a strange field": (lambda f: edit(f, lambda c: c.update(more=1)), "gate_config.json: .*more"),
    "another version": (lambda f: edit(f, lambda c: c.update(version=2)), "gate_config.json: .*version"),
    "a short hash": (lambda f: edit(f, lambda c: c["base"].update(fingerprint="ab")), "gate_config.json: .*fingerprint"),
    "a strange reader": (lambda f: edit(f, lambda c: c["sites"][0].update(readers=["x"])), "gate_config.json: .*reads x"),
    "fewer sites": (lambda f: edit(f, lambda c: c["sites"].pop()), "which its gate_config.json lacks"),
    "a site twice": (lambda f: edit(f, lambda c: c["sites"].append(c["sites"][0])), "does not fit"),
    "a LoRA twice": (lambda f: edit(f, lambda c: c["experts"][1].update(c["experts"][0])), "a LoRA is named twice"),
    "fewer LoRAs": (lambda f: edit(f, lambda c: c["experts"].pop()), "does not fit"),
    "no config": (lambda f: (f / "gate_config.json").unlink(), "holds no trained gates"),
    "no folder": (lambda f: shutil.rmtree(f), "holds no trained gates"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_told(kind: str, tmp_path: Path) -> None:
    save(tmp_path / "gates")
    damage, message = DAMAGE[kind]
    damage(tmp_path / "gates")
    with pytest.raises(AdapterError, match=message) as told:
        load_gates(tmp_path / "gates")
    assert "gates" in str(told.value.where) or kind == "a LoRA twice"
    assert told.value.fix
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 1000


@pytest.mark.parametrize("at", [0.0, 0.01, 0.5, 1.0])
def test_a_flipped_bit_anywhere_in_a_training_state_is_told(at: float, tmp_path: Path) -> None:
    save(tmp_path / "gates")
    flip(tmp_path / "gates", "training.safetensors", at)
    load_gates(tmp_path / "gates")  # the gates themselves are whole
    with pytest.raises(AdapterError, match=r"training.safetensors: is damaged.* Take the whole folder anew, or train"):
        read_tensors(tmp_path / "gates" / "training.safetensors")


def test_another_base_and_other_loras_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "gates")
    saved = read_config(tmp_path / "gates")
    check_fit(saved, BASE, [*reversed(EXPERTS), expert("more")], "gates")
    with pytest.raises(
        AdapterError,
        match=r"gates: was trained on the base tiny \(aaaaaaaaaaaa\), not on large \(bbbbbbbbbbbb\)\. Load that base, or train",
    ):
        check_fit(saved, Base(id="large", fingerprint="b" * 64), EXPERTS, "gates")
    with pytest.raises(
        AdapterError,
        match=r"gates: mixes second \(111111111111\); given: first \(000000000000\), .*\. Load the LoRAs it was trained with",
    ):
        check_fit(saved, BASE, [EXPERTS[0], EXPERTS[2]], "gates")
    same_name = Expert(name="second", fingerprint="d" * 64)
    with pytest.raises(AdapterError, match=r"mixes second \(1+\); given: first \(0+\), second \(d+\)"):
        check_fit(saved, BASE, [EXPERTS[0], same_name, EXPERTS[2]], "gates")
    with pytest.raises(AdapterError, match="given: none"):
        check_fit(saved, BASE, [], "gates")


def test_a_training_goes_on_from_its_folder_exactly(tmp_path: Path) -> None:
    config = UNEVEN.model_copy(update={"alpha": 0.5, "steps": 6})
    whole, first, second = (net_trainer(config) for _ in range(3))
    list(whole.run())
    for progress in first.run():
        if progress.step == 3:
            break
    experts = [Expert(name=key, fingerprint=str(number) * 64) for number, key in enumerate(first.gates.experts)]
    recipe = GateRecipe.check({"sources": ["a", "b"], "data": ["x"], "gates": {"granularity": "module"}}, "test")
    save_gates(tmp_path / "gates", first.gates, BASE, experts, recipe, first.state())
    assert read_config(tmp_path / "gates").steps == 3
    second.resume(read_tensors(tmp_path / "gates" / "training.safetensors"))
    assert [progress.step for progress in second.run()] == [4, 5, 6]
    expected, found = whole.state(), second.state()
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    loaded = load_gates(tmp_path / "gates").state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in first.gates.state_dict().items())


def test_what_exists_is_not_overwritten(tmp_path: Path) -> None:
    save(tmp_path / "gates")
    with pytest.raises(AdapterError, match="exists already"):
        save(tmp_path / "gates")
    assert {path.name for path in tmp_path.iterdir()} == {"gates"}


def test_killed_while_saving_leaves_the_whole_or_nothing(tmp_path: Path) -> None:
    """Killed before each touch of a file in turn; the next saving clears away what was left."""
    torch.set_num_threads(1)  # threads do not survive a fork
    gates = some_gates()
    recipe = GateRecipe.check({"sources": list(KEYS), "data": ["x"]}, "test")
    missing = 0
    for at in range(1, 100):
        parent = tmp_path / f"out{at}"
        child = os.fork()
        if not child:
            try:
                die_at(str(parent), at)
                save_gates(parent / "gates", gates, BASE, EXPERTS, recipe, {"step": torch.tensor(1)})
            finally:
                os._exit(0 if (parent / "gates").exists() else 1)
        status = os.waitpid(child, 0)[1]
        killed = os.WIFSIGNALED(status)
        assert killed or status == 0
        missing += not (parent / "gates").exists()
        if not (parent / "gates").exists():
            save_gates(parent / "gates", gates, BASE, EXPERTS, recipe, {"step": torch.tensor(1)})
        assert {path.name for path in (parent / "gates").iterdir()} == PARTS
        assert [path.name for path in parent.iterdir()] == ["gates"]
        load_gates(parent / "gates")
        read_tensors(parent / "gates" / "training.safetensors")
        if not killed:
            break
    assert at > missing > 6


def die_at(parent: str, at: int) -> None:
    """Kill this process before it touches a file below a folder for the so-manieth time."""
    touched = 0

    def kill(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal touched
        if event in {"open", "os.rename", "os.mkdir", "os.chmod"} and any(str(a).startswith(parent) for a in arguments):
            touched += 1
            if touched == at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(kill)
