"""Writing: complete or not at all, config exact, recipe and card inside."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
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


@pytest.mark.parametrize("method", ["lego", "sum"])
def test_streaming_gives_the_same_bytes(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From files to files, however the modules are grouped, equal to merging in memory and writing."""
    sources = [lego.read_adapter(lego.write_adapter(a, tmp_path / a.name)) for a in mixed_adapters()]
    parameters = {"k": "80%"} if method == "lego" else {}
    merged = lego.merge(sources, method=method, weights=[1, {"q_proj": 0.5}, -1], name="x", **parameters)
    expected = lego.write_adapter(merged, tmp_path / "memory" / "x")
    for group in (1, 2**30):
        monkeypatch.setattr("lego.units.GROUP_BYTES", group)
        steps: list[tuple[int, int]] = []
        out = tmp_path / str(group) / "x"
        report = lego.merge_into(
            out,
            sources,
            method=method,
            weights=[1, {"q_proj": 0.5}, -1],
            progress=lambda done, total, steps=steps: steps.append((done, total)),
            **parameters,
        )
        for file in ("adapter_model.safetensors", "adapter_config.json", "recipe.yaml"):
            assert (out / file).read_bytes() == (expected / file).read_bytes(), file
        assert report.export_error == pytest.approx(merged.report.export_error, rel=1e-3)
        assert steps[-1] == (6, 6)
        assert json.loads((out / "report.json").read_text())["per_module"] == [
            line.model_dump() for line in report.per_module
        ]


@pytest.mark.parametrize("method", ["core", "ctm", "knots_ties", "tsv", "svd"])
def test_tiny_updates_survive_fp16(method: str, tmp_path: Path) -> None:
    """Methods with an orthonormal half spread a small update over both, so that fp16 still has digits for it."""
    small = Factors(
        *(torch.randn(shape, generator=torch.Generator().manual_seed(0)) for shape in ((2, 30), (40, 2))), 1e-8
    )
    merged = lego.merge(
        [Adapter.from_factors("small", {"m": small})], method=method, **({"rule": "sum"} if "c" in method[0] else {})
    )
    lego.write_adapter(merged, tmp_path / "out")
    assert merged.report.export_error < 2e-3


def test_stopped_by_progress_leaves_nothing(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lego.merge_into(tmp_path / "out", mixed_adapters(), progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_merge_left_is_removed_by_the_next(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", "pass"])
    dead.wait()
    own, living = (tmp_path / f".out[1].{platform.node()}.{pid}.abc" for pid in (dead.pid, os.getppid()))
    for folder in (own, living, tmp_path / f".out[1].elsewhere.{dead.pid}.abc"):
        folder.mkdir()
    lego.write_adapter(make_adapter("a", 1), tmp_path / "out[1]")
    assert not own.exists()
    assert len(list(tmp_path.iterdir())) == 3  # one of a living process, one of another machine, and the adapter


def test_the_card_says_what_the_hub_wants_to_know(tmp_path: Path) -> None:
    one, other = equal_adapters(2)
    one.card, other.card, one.base_model, one.origin = (
        {"license": "mit"},
        {"license": "mit"},
        "owner/base",
        "owner/one@abc",
    )
    text = (lego.write_adapter(lego.merge([one, other]), tmp_path / "a") / "README.md").read_text()
    assert yaml.safe_load(text.split("---")[1]) == {
        "base_model": "owner/base",
        "base_model_relation": "adapter",
        "library_name": "peft",
        "license": "mit",
        "tags": ["lora", "merge", "brickyard"],
    }
    assert "| owner/one@abc | 1.0 | 4 | mit |" in text
    other.card, one.base_model = {}, "/home/me/base"
    merged = lego.merge([one, other])
    assert (merged.recipe.sources[0].hub, merged.recipe.sources[0].revision) == ("owner/one", "abc")
    text = (lego.write_adapter(merged, tmp_path / "b") / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert "base_model" not in front
    assert front["license"] == "other"
    assert "not stated" in text


def test_types_that_no_adapter_is_stored_in(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"not written as torch\.int8"):
        lego.write_adapter(make_adapter("a", 1), tmp_path / "out", torch.int8)
    with pytest.raises(AdapterError, match="no format 'gguf'"):
        lego.write_adapter(make_adapter("a", 1), tmp_path / "out", format="gguf")


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


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    bad = Adapter.from_factors("bad", {"m": Factors(torch.tensor([[1.0, torch.nan]]), torch.ones(2, 1))})
    with pytest.raises(AdapterError, match="holds NaN or infinite values"):
        lego.write_adapter(bad, tmp_path / "out", torch.float32)


def test_large_values_whose_sum_overflows_are_written(tmp_path: Path) -> None:
    big = Adapter.from_factors("big", {"m": Factors(torch.full((1, 2), 3e38), torch.ones(2, 1))})
    back = lego.read_adapter(lego.write_adapter(big, tmp_path / "out", torch.float32))
    assert torch.equal(back["m"].down, big["m"].down)


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lego.tensorwriter.TensorWriter.finish", full)
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
