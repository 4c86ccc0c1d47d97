"""The image model and the LoRAs that ship, against diffusers' own: every LoRA, their sums, and what every method merges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from backends import library
from backends.bases import IMAGE, ImageBase, load_base
from backends.device import pick
from backends.image import Drawing, Variant
from lego import methods
from mole.live import Weighting
from tests.oracle.test_image import alone, drawn, load

SHIPPED = Path(__file__).parents[2] / "assets" / "image"
ADAPTERS = sorted(path.name for path in (SHIPPED / "adapters").iterdir())
KOHYA = sorted(path.name for path in (SHIPPED / "kohya").iterdir())
PROMPT, DRAWING = "a zib", Drawing(steps=3, guidance=2.0, seeds=(1,))


@pytest.fixture(scope="module")
def base() -> ImageBase:
    found = load_base(IMAGE)
    assert isinstance(found, ImageBase)
    return found


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRICKYARD_HOME", str(tmp_path / "home"))


def peer(folders: dict[str, Path]) -> Any:
    """diffusers alone, with LoRAs."""
    pipeline = StableDiffusionPipeline.from_pretrained(SHIPPED / "base", torch_dtype=torch.float32).to(pick()[0])
    load(pipeline, folders)
    return pipeline


def test_every_lora_and_their_sum_are_those_of_diffusers(base: ImageBase) -> None:
    entries = {entry.name: entry for entry in library.builtin("image")}
    assert sorted(entries) == ADAPTERS
    sums = [{}, *({name: 1.0} for name in ADAPTERS), {name: 0.8 / (at + 1) for at, name in enumerate(ADAPTERS)}]
    variants = [Variant(str(w), Weighting(tuple((entries[n].key, weight) for n, weight in w.items()))) for w in sums]
    found = drawn(base, variants, DRAWING, (PROMPT,))[:, 0]
    theirs = peer({name: SHIPPED / "adapters" / name for name in ADAPTERS})
    for pictures, weights in zip(found, sums, strict=True):
        if weights:
            theirs.enable_lora()
            theirs.set_adapters(list(weights), list(weights.values()))
        else:
            theirs.disable_lora()
        torch.testing.assert_close(pictures, alone(theirs, DRAWING, PROMPT), rtol=0, atol=1e-3)
    assert all((pictures - found[0]).abs().mean() > 0.02 for pictures in found[1:]), "every LoRA must be seen"


@pytest.mark.parametrize("name", KOHYA)
def test_kohyas_files_draw_the_same(base: ImageBase, name: str) -> None:
    keys = [library.add_folder(SHIPPED / form / name).key for form in ("adapters", "kohya")]
    one, other = drawn(base, [Variant(key, Weighting(((key, 1.0),))) for key in keys], DRAWING, (PROMPT,))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def fused(folder: Path) -> Tensor:
    """What diffusers draws with a merge in its weights."""
    pipeline = peer({"merge": folder})
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    return alone(pipeline, DRAWING, PROMPT)


def test_every_method_merges_them_as_diffusers_draws_it(base: ImageBase) -> None:
    """A style on attention and text encoder with a subject on these, feed-forward layers and convolutions, of unequal ranks."""
    adapters = [library.get(library.add_folder(SHIPPED / "adapters" / name).key) for name in ("ink-style", "zib")]
    merged = {name: library.merge(adapters, name, method=name, seed=1) for name in methods()}
    variants = [Variant("base"), *(Variant(name, Weighting(((each.key, 1.0),))) for name, each in merged.items())]
    found = drawn(base, variants, DRAWING, (PROMPT,))[:, 0]
    wrong = {}
    for pictures, (name, entry) in zip(found[1:], merged.items(), strict=True):
        far = (pictures - fused(entry.path)).abs().max().item()
        if far > 1e-3 or (pictures - found[0]).abs().mean() < 0.005:
            wrong[name] = far
    assert wrong == {}
