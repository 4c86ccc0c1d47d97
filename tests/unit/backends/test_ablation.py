"""Muted sets against densely edited models, token by token; pictures against drawings of their own."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from backends import ablation, library
from backends.ablation import ablate_image, ablate_text
from backends.bases import ImageBase, TextBase, load_base
from backends.image import Drawing, Variant, draw
from backends.sampling import Sampling
from lego import AdapterError
from lego.unitset import UnitSet
from mole.pool import Weighting
from tests.tiny import merged, tiny_base, tiny_entry
from tests.tiny_pipelines import tiny_folder, write_lora

SHORT = Sampling(max_new_tokens=6)
PROMPT = "What is it?"
UP, Q = "model.layers.0.mlp.up_proj", "model.layers.1.self_attn.q_proj"


@pytest.fixture
def base() -> TextBase:
    return tiny_base()


@pytest.fixture
def whole(tmp_path: Path) -> Weighting:
    first, second = tiny_entry(tmp_path / "first", 1).key, tiny_entry(tmp_path / "second", 2, rank=2, alpha=3).key
    return Weighting(((first, 0.5), (second, -0.7)), UnitSet.of([(first, UP, 3)]))


def sets_of(whole: Weighting) -> list[UnitSet]:
    (first, _), (second, _) = whole.adapters
    muted = [[(first, UP, 0), (second, UP, 1)], [(first, Q, 2)], [(first, UP, 3)], [(second, Q, i) for i in range(2)]]
    return [UnitSet.of(units) for units in muted]


def dense(base: TextBase, whole: Weighting, without: UnitSet) -> Any:
    """The model with Σ w s b aᵀ of all units but the muted ones in its weights."""
    model = merged(base.model, dict(whole.adapters))
    for key, module, unit in {*whole.muted, *without}:
        factors = library.get(key)[module]
        own = factors.scale * torch.outer(factors.up[:, unit], factors.down[unit])
        model.get_submodule(module).weight -= dict(whole.adapters)[key] * own
    return model


def naive(base: TextBase, whole: Weighting, without: UnitSet, answer: str) -> float:
    """The mean over the answer's tokens of KL(whole ‖ without), one token and one model at a time."""
    prompt, made = (base.tokenizer(text)["input_ids"] for text in (f"user: {PROMPT}\na: ", answer))
    found = []
    for i in range(len(made)):
        ids = torch.tensor([prompt + made[:i]])
        one, other = (
            dense(base, whole, muted)(ids).logits[0, -1].double().log_softmax(-1) for muted in (UnitSet(), without)
        )
        found.append(float((one.exp() * (one - other)).sum()))
    return float(np.mean(found))


@pytest.mark.parametrize("at_once", [512, 1])
def test_each_set_moves_the_output_as_the_dense_model_does(
    base: TextBase, whole: Weighting, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablation, "TOKENS_AT_ONCE", {"cpu": at_once})
    sets = sets_of(whole)
    *coming, last = ablate_text(base, whole, sets, PROMPT, SHORT)
    assert last.finished
    assert [found.done for found in (*coming, last)] == ([0, 4] if at_once > 1 else [0, 1, 2, 3, 4])
    assert last.answer
    expected = [naive(base, whole, units, last.answer) for units in sets]
    np.testing.assert_allclose(last.moved, expected, rtol=1e-3, atol=1e-6)
    assert last.moved[2] == pytest.approx(0, abs=1e-6), "what is muted already moves nothing"
    assert min(last.moved[i] for i in (0, 1, 3)) > 1e-4


def test_it_can_be_stopped(base: TextBase, whole: Weighting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablation, "TOKENS_AT_ONCE", {"cpu": 1})
    stop, seen = threading.Event(), []
    for found in ablate_text(base, whole, sets_of(whole), PROMPT, SHORT, stop):
        seen.append(found)
        if found.done == 2:
            stop.set()
    assert [found.done for found in seen] == [0, 1, 2]
    assert [math.isnan(value) for value in seen[-1].moved] == [False, False, True, True]


def test_nothing_to_mute_and_no_prompt_are_refused(base: TextBase, whole: Weighting) -> None:
    with pytest.raises(AdapterError, match="nothing to mute"):
        next(ablate_text(base, whole, [], PROMPT))
    with pytest.raises(AdapterError, match="no prompt"):
        next(ablate_text(base, whole, sets_of(whole), "  "))
    with pytest.raises(AdapterError, match="has no unit 9"):
        list(ablate_text(base, whole, [UnitSet.of([(whole.adapters[0][0], UP, 9)])], PROMPT, SHORT))


class Judge:
    """A contrastive model whose vectors are the pictures' mean colours."""

    class model:
        class config:
            projection_dim = 3

    @staticmethod
    def images(pictures: list[Image.Image]) -> torch.Tensor:
        means = np.stack([np.asarray(picture, dtype=float).mean((0, 1)) for picture in pictures])
        return torch.nn.functional.normalize(torch.tensor(means), dim=-1)


def test_pictures_move_as_far_as_the_judge_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRICKYARD_DEVICE", "cpu")
    base = load_base(str(tiny_folder(tmp_path / "sd", "sd")))
    assert isinstance(base, ImageBase)
    key = library.add_folder(write_lora(tmp_path / "red", "sd", 1, "peft")).key
    every, wanted = UnitSet.every({key: library.get(key)}), Drawing(steps=2, guidance=2, seeds=(0, 1))
    *coming, last = ablate_image(base, Weighting(((key, 1.0),)), [every, UnitSet()], "a cat", Judge(), wanted)  # type: ignore[arg-type]
    assert not any(found.finished for found in coming)
    *_, sheet = draw(base, [Variant("with", Weighting(((key, 1.0),))), Variant("base")], ["a cat"], wanted)
    (with_it,), (bare,) = sheet.pictures
    distances = [1 - float(Judge.images([a])[0] @ Judge.images([b])[0]) for a, b in zip(with_it, bare, strict=True)]
    assert last.moved[0] == pytest.approx(np.mean(distances), abs=1e-9)
    assert last.moved[0] > 0
    assert last.moved[1] == pytest.approx(0, abs=1e-9)
