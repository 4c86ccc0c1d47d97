"""`/train_gate` and `/gates` on a base that draws, called as a program calls them."""

from __future__ import annotations

import base64
import io
import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image

from backends import library
from tests.tiny_pipelines import alike, tiny_folder, write_lora

SHORT = {"steps": 2, "batch": 2, "calibration": 2, "lr": 0.05}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline and two LoRAs for it."""
    folder = tmp_path_factory.mktemp("places")
    tiny_folder(folder / "base", "sd")
    for seed, name in enumerate(("first", "second"), 1):
        write_lora(folder / name, "sd", seed, "peft", only=["unet"])
    return folder


@pytest.fixture(scope="module")
def adapters(places: Path) -> list[str]:
    return [str(places / name) for name in ("first", "second")]


def row(text: str, seed: int) -> dict[str, str]:
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return {"text": text, "picture": base64.b64encode(file.getvalue()).decode()}


ROWS = [row("a cat", 0), row("a hat", 1), row("a dog", 2)]


@pytest.fixture(scope="module")
def steps(client: Client, places: Path, adapters: list[str]) -> list[dict]:
    """A short training, as it streams."""
    job = client.submit(
        adapters, {"animals": 2}, {"pooling": "flatten"}, SHORT, ROWS, "mine", str(places / "base"),
        api_name="/train_gate",
    )  # fmt: skip
    return list(job)


def test_gates_over_pictures_are_trained_and_tell_their_choices(
    client: Client, places: Path, adapters: list[str], steps: list[dict]
) -> None:
    *streamed, last = steps
    assert [step["step"] for step in streamed] == [1, 2]
    np.testing.assert_allclose(streamed[0]["shares"], 0.5, atol=1e-6)
    with zipfile.ZipFile(last["file"]) as archive:
        recipe = json.loads(archive.read("mine/gate_config.json"))["recipe"]
    assert [(data["rows"].rsplit("/", 1)[-1], data["share"]) for data in recipe["data"]] == [
        ("animals", 2),
        ("captions", 1),
    ]
    assert recipe["gates"]["pooling"] == "flatten"

    found = client.predict(last["key"], "a cat", steps=3, seed=4, api_name="/gates")
    by_step = np.array(found["by_step"])
    assert by_step.shape == (3, last["gates"], 2)
    np.testing.assert_allclose(by_step.mean(axis=0), found["weights"], rtol=1e-5)
    np.testing.assert_allclose(by_step.sum(axis=2), 1, rtol=1e-5)
    logs = np.log(by_step, where=by_step > 0, out=np.zeros_like(by_step))
    assert found["entropy"] == pytest.approx(-(by_step * logs).sum(axis=2).mean(), rel=1e-4)
    parts = [place.split(".")[1] for place in found["places"] if "blocks" in place or "mid" in place]
    assert list(dict.fromkeys(parts)) == ["down_blocks", "mid_block", "up_blocks"]

    # Its picture is the one that /draw draws; without the second LoRA it is that of the first alone.
    keys = [library.add_folder(path).key for path in adapters]
    variants = [
        {"name": "gates", "gates": last["key"]},
        {"name": "first", "adapters": {adapters[0]: 1}},
        {"name": "only first", "gates": last["key"], "masked": ["second"]},
    ]
    drawn = client.predict(variants, ["a cat"], str(places / "base"), steps=3, seeds=[4], api_name="/draw")
    pictures = [np.asarray(Image.open(each["pictures"][0][0])).astype(int) for each in drawn["variants"]]
    assert alike(np.asarray(Image.open(found["picture"])), pictures[0])
    assert alike(pictures[1], pictures[2])
    assert np.abs(pictures[0] - pictures[1]).mean() > 0.5
    assert [each["key"] for each in drawn["variants"][1]["adapters"]] == keys[:1]


def test_captions_alone_are_learned_from_under_guidance(client: Client, places: Path, adapters: list[str]) -> None:
    rows = [{"text": "a cat"}, {"text": "a hat"}]
    given = (
        adapters,
        None,
        {},
        {**SHORT, "steps": 1},
        rows,
        "guided",
        str(places / "base"),
        {"steps": 2, "local": 0.5},
    )
    *_, last = client.submit(*given, api_name="/train_gate")
    with zipfile.ZipFile(last["file"]) as archive:
        recipe = json.loads(archive.read("guided/gate_config.json"))["recipe"]
    assert (recipe["guidance"]["steps"], recipe["guidance"]["local"]) == (2, 0.5)


BAD = [
    ([{"sets": 1}], "there is no set 'sets' of pictures"),
    ([{}], "nothing to train on"),
    ([None, None, None, [{"text": "a cat"}]], "rows[0]: is not a row: it takes {text: …, picture: base64}"),
    ([None, None, None, [{"text": "a", "picture": "?"}]], "a row's picture is not base64"),
    ([None, None, None, [{"text": "a", "picture": "AAAA"}]], "0001: is not a picture that can be read"),
    ([None, None, None, [{**ROWS[0], "text": " "}]], "gives 0001 an empty caption"),
    ([{"animals": 1}, {"pooling": "most"}], "gates.pooling"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_data_is_answered_with_its_reason(
    client: Client, places: Path, adapters: list[str], arguments: list, message: str
) -> None:
    with pytest.raises(AppError, match="(?s)" + re.escape(message)):
        client.predict(adapters, *arguments, base=str(places / "base"), api_name="/train_gate")


def test_guidance_is_refused_where_a_base_writes(client: Client) -> None:
    with pytest.raises(AppError, match="guidance is for bases that draw"):
        client.predict(["past-tense", "sentiment"], guidance={}, api_name="/train_gate")
