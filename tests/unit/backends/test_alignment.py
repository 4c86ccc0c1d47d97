"""Text and image alignment against transformers' own forward pass of a tiny random CLIP, from folders and the hub on loopback."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPModel

from assets.build.images.concepts import CONCEPTS, caption
from assets.build.images.contrast import new_contrastive
from assets.build.images.folder import write_contrastive
from assets.build.images.pictures import Pictures
from assets.build.images.text import new_tokenizer, token_ids
from backends import alignment
from backends.alignment import Alignment
from backends.bases import BaseError
from lego.errors import AdapterError
from tests.hub import Hub

CAPTIONS = [caption(concept) for concept in CONCEPTS[:3]]

pytestmark = pytest.mark.usefixtures("apart")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the build writes it, with random weights."""
    place = tmp_path_factory.mktemp("models") / "clip"
    torch.manual_seed(0)
    tokenizer = new_tokenizer(CONCEPTS[:8])
    record = {"plan": {"steps": 0, "batch": 1}, "seconds": 0, "among": 100, "ranked_first": {"train": 0, "held_out": 0}}
    write_contrastive(new_contrastive(tokenizer).float(), tokenizer, record, place)
    return place


def pictures(count: int, side: int = 64) -> list[Image.Image]:
    rng = np.random.default_rng(count)
    return [Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(count)]


def cosines(folder: Path, shown: list[Image.Image], captions: list[str]) -> np.ndarray:
    """What transformers' forward pass makes of them; pixels as in training."""
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32)
    pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in shown]))
    images = Pictures(pixels, ()).images()
    with torch.no_grad():
        found = model(input_ids=token_ids(new_tokenizer(CONCEPTS[:8]), captions), pixel_values=images)
    return (found.logits_per_image / model.logit_scale.exp()).detach().numpy()


def test_the_measures_are_the_cosines_of_the_forward_pass(folder: Path) -> None:
    shown = pictures(3)
    wanted = cosines(folder, shown, CAPTIONS)
    found = Alignment.load(str(folder))
    assert (found.images(shown) @ found.texts(CAPTIONS).T).numpy() == pytest.approx(wanted, abs=1e-5)
    assert found.text_alignment(shown, CAPTIONS).numpy() == pytest.approx(wanted.diagonal(), abs=1e-5)
    repeated = found.text_alignment([*shown, shown[0]], [CAPTIONS[1]] * 4)
    assert repeated.numpy() == pytest.approx([*wanted[:, 1], wanted[0, 1]], abs=1e-5)


def test_image_alignment_is_the_mean_cosine_with_all_references(folder: Path) -> None:
    shown, references = pictures(2), pictures(5)
    found = Alignment.load(str(folder))
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32)
    processor = CLIPImageProcessorPil.from_pretrained(folder)
    with torch.no_grad():
        mine, theirs = (
            model.get_image_features(**processor(images=part, return_tensors="pt")).pooler_output.numpy()
            for part in (shown, references)
        )
    wanted = [
        np.mean([a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in theirs]) for a in mine
    ]  # fmt: skip
    assert found.image_alignment(shown, references).numpy() == pytest.approx(wanted, abs=1e-5)
    assert found.image_alignment(shown[:1], shown[:1]).item() == pytest.approx(1, abs=1e-5)


def test_pictures_of_other_sizes_and_modes_are_brought_into_form(folder: Path) -> None:
    found = Alignment.load(str(folder))
    large = pictures(1, 128)[0]
    assert found.images([large]).shape == found.images([large.convert("RGBA")]).shape == (1, 128)
    assert torch.equal(found.images([large]), found.images([large.convert("RGBA")]))


def test_more_than_a_batch_and_long_captions(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, shown = Alignment.load(str(folder)), pictures(5)
    whole = found.images(shown), found.texts([*CAPTIONS, "very " * 99])
    monkeypatch.setattr(alignment, "BATCH", 2)
    assert torch.allclose(found.images(shown), whole[0], atol=1e-6)
    assert torch.allclose(found.texts([*CAPTIONS, "very " * 99]), whole[1], atol=1e-6)


def test_nothing_to_measure_is_told(folder: Path) -> None:
    found = Alignment.load(str(folder))
    with pytest.raises(AdapterError, match="no pictures to measure"):
        found.images([])
    with pytest.raises(AdapterError, match="no captions to measure"):
        found.texts([])
    with pytest.raises(AdapterError, match="2 pictures and 1 captions"):
        found.text_alignment(pictures(2), CAPTIONS[:1])


def test_a_model_is_loaded_once_and_frozen(folder: Path) -> None:
    found: list[Alignment] = []
    threads = [threading.Thread(target=lambda: found.append(Alignment.load(f"{folder}/"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(one) for one in found}) == 1
    assert not any(parameter.requires_grad for parameter in found[0].model.parameters())


def test_the_built_in_model_is_what_ships(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignment, "ASSETS", folder)
    assert Alignment.load() is Alignment.load(alignment.BUILTIN)
    assert Alignment.load().model.dtype == torch.float32
    monkeypatch.setattr(alignment, "_loaded", type(alignment._loaded)())
    monkeypatch.setattr(alignment, "ASSETS", tmp_path / "nothing")
    with pytest.raises(BaseError, match=r"has no config\.json"):
        Alignment.load()


def test_a_model_from_the_hub(folder: Path, remote: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    remote.repos["some/clip"] = folder
    told: list[str] = []
    found = Alignment.load("some/clip", lambda text, fraction: told.append(text))
    wanted = Alignment.load(str(folder))
    assert torch.allclose(found.texts(CAPTIONS), wanted.texts(CAPTIONS), atol=1e-6)
    assert told[-1] == "Ready"
    monkeypatch.setattr(alignment, "_loaded", type(alignment._loaded)())
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert torch.equal(Alignment.load("some/clip").texts(CAPTIONS), found.texts(CAPTIONS))
    with pytest.raises(BaseError, match="cannot be reached"):
        Alignment.load("other/clip")


def test_what_is_no_clip_model_is_refused_before_its_weights_are_fetched(
    folder: Path, remote: Hub, tmp_path: Path
) -> None:
    def copy(name: str, *left_out: str) -> Path:
        place = tmp_path / name
        place.mkdir()
        for file in folder.iterdir():
            if file.name not in left_out:
                (place / file.name).write_bytes(file.read_bytes())
        return place

    other = copy("other")
    config = json.loads((other / "config.json").read_text()) | {"model_type": "siglip"}
    (other / "config.json").write_text(json.dumps(config))
    pickled = copy("pickled", "model.safetensors")
    (pickled / "pytorch_model.bin").write_bytes(b"no")
    bare = copy("bare", "preprocessor_config.json")
    cases = ((other, "of type 'siglip', not clip"), (pickled, "only as pickles"), (bare, "has no preprocessor_config"))
    for place, why in cases:
        remote.repos[f"some/{place.name}"] = place
        for id in (str(place), f"some/{place.name}"):
            with pytest.raises(BaseError, match=why):
                Alignment.load(id)
        assert remote.bytes_of("model.safetensors") == 0
    damaged = copy("damaged")
    (damaged / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(BaseError, match="cannot be loaded"):
        Alignment.load(str(damaged))
    with pytest.raises(BaseError, match="neither a hub id nor a folder"):
        Alignment.load("a b c")
    with pytest.raises(BaseError, match="does not exist on the hub"):
        Alignment.load("no/body")
