"""Writing: complete or not at all, config exact, recipe and card inside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import lego
from lego import Adapter, AdapterError, Factors, Recipe
from tests.conftest import equal_adapters, make_adapter, mixed_adapters


def test_ranks_in_the_config_are_exact(tmp_path: Path) -> None:
    merged = lego.merge(mixed_adapters(), method="concat")
    lego.write_adapter(merged, tmp_path / "out")
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    q, k, up = (f"model\\.layers\\.{{}}\\.self_attn\\.{kind}_proj" for kind in ("q", "k", "up"))
    ranks = {name.format(layer): rank for name, rank in ((q, 12), (k, 10), (up, 6)) for layer in (0, 1)}
    assert {**ranks, **config["rank_pattern"]} == ranks
    assert config["rank_pattern"] == config["alpha_pattern"]
    assert config["r"] == config["lora_alpha"] in ranks.values()
    assert len(config["rank_pattern"]) == 4
    assert config["use_rslora"] is False
    back = lego.read_adapter(tmp_path / "out")
    assert {m: s.rank for m, s in back.modules.items()} == {m: s.rank for m, s in merged.modules.items()}
    assert {s.scale for s in back.modules.values()} == {1.0}


def test_the_recipe_is_beside_and_inside(tmp_path: Path) -> None:
    merged = lego.merge(equal_adapters(2), k=6, seed=7, weights=[1, 0.5])
    folder = lego.write_adapter(merged, tmp_path / "out")
    recipe = Recipe.from_yaml((folder / "recipe.yaml").read_text())
    assert recipe == merged.recipe
    assert (recipe.method, recipe.seed, recipe.parameters["k"]) == ("lego", 7, 6)
    assert [source.weight for source in recipe.sources] == [1, 0.5]
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        assert Recipe.from_yaml(file.metadata()["brickyard_recipe"]) == recipe
    assert json.loads((folder / "report.json").read_text())["method"] == "lego"
    assert all(source.sha256 in (folder / "README.md").read_text() for source in recipe.sources)


def test_equal_merges_are_equal_files(tmp_path: Path) -> None:
    """Byte for byte, so that a hash tells whether a merge was repeated; several times, since a random order may agree by chance."""
    merged = lego.merge(equal_adapters(2), name="é")
    written = [lego.write_adapter(merged, tmp_path / f"out{i}" / "x") for i in range(8)]
    assert len({(folder / "adapter_model.safetensors").read_bytes() for folder in written}) == 1
    assert lego.read_adapter(written[0]).modules == lego.read_adapter(written[1]).modules


def test_a_recipe_that_is_none() -> None:
    for text in ("[", "sources: 3", "method: lego"):
        with pytest.raises(AdapterError, match="not a recipe"):
            Recipe.from_yaml(text)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(AdapterError, match="exists already"):
        lego.write_adapter(make_adapter("a", 1), tmp_path / "out")


def test_values_too_large_for_the_type(tmp_path: Path) -> None:
    big = Adapter.from_factors("big", {"m": Factors(torch.full((1, 2), 1e6), torch.ones(2, 1))})
    with pytest.raises(AdapterError, match=r"reaches 1e\+06, too large for torch.float16. Write float32"):
        lego.write_adapter(big, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    lego.write_adapter(big, tmp_path / "out", torch.float32)


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lego.write.save_file", full)
    with pytest.raises(AdapterError, match="No space left"):
        lego.write_adapter(make_adapter("a", 1), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_export_error_is_measured(tmp_path: Path) -> None:
    merged = lego.merge(equal_adapters(2), method="concat")
    folder = lego.write_adapter(merged, tmp_path / "half")
    back = lego.read_adapter(folder)
    error = sum(float(((back[m].delta() - merged[m].delta()) ** 2).sum()) for m in merged.modules)
    target = sum(float((merged[m].delta() ** 2).sum()) for m in merged.modules)
    assert merged.report.export_error == pytest.approx((error / target) ** 0.5, rel=1e-3)
    assert 5e-5 < merged.report.export_error < 1e-3


def test_negative_scales_survive(tmp_path: Path) -> None:
    one = Adapter.from_factors("n", {"m": Factors(torch.ones(1, 2), torch.ones(2, 1), -0.5)})
    back = lego.read_adapter(lego.write_adapter(one, tmp_path / "out"))
    torch.testing.assert_close(back["m"].delta(), one["m"].delta(), rtol=1e-3, atol=1e-3)


def test_killed_while_writing_leaves_no_half_adapter(tmp_path: Path) -> None:
    """SIGKILL at many moments: the folder is absent or complete, never partial."""
    script = (
        "import lego, torch, sys\n"
        "g = torch.Generator().manual_seed(0)\n"
        "new = lambda *shape: torch.randn(*shape, generator=g)\n"
        "f = {f'layers.{i}.q': lego.Factors(new(16, 2048), new(2048, 16)) for i in range(40)}\n"
        "a = lego.Adapter.from_factors('big', f)\n"
        "print('ready', flush=True)\n"
        "i = 0\n"
        "while True:\n"
        "    lego.write_adapter(a, sys.argv[1] + f'/out{i}'); i += 1\n"
    )
    outcomes = set()
    for attempt in range(3):
        folder = tmp_path / f"try{attempt}"
        folder.mkdir()
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]
        )
        assert process.stdout.readline() == b"ready\n"
        time.sleep(0.05 + 0.17 * attempt)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        for made in folder.glob("out*"):
            assert len(lego.read_adapter(made).modules) == 40
            outcomes.add("complete")
    assert outcomes <= {"complete"}
