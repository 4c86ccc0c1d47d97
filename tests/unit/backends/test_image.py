"""Drawing: what a sheet tells on the way, Stop, abandoning, memory, and what is refused."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from backends import image, library, memory, schedulers
from backends.bases import BaseError, ImageBase
from backends.image import Drawing, Sheet, Variant, draw
from backends.painting import spread
from backends.previews import sketch
from backends.streamed import streamed
from lego import AdapterError
from mole.live import Weighting
from tests.tiny_pipelines import tiny_image_base, write_lora

FEW = Drawing(steps=3, guidance=2)
BASE = Variant("base")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ImageBase:
    return tiny_image_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Variant:
    entry = library.add_folder(write_lora(tmp_path_factory.mktemp("lora") / "red", "sd", 1, "peft"))
    return Variant("red", Weighting(((entry.key, 1.0),)))


def pixels(picture: Image.Image | None) -> np.ndarray:
    assert picture is not None
    return np.asarray(picture).astype(float)


def test_a_sheet_comes_after_every_step(base: ImageBase, lora: Variant) -> None:
    *coming, last = draw(base, [BASE, lora], ["a cat", "a hat"], replace(FEW, seeds=(0, 1, 2)))
    assert [(sheet.step, sheet.steps, sheet.finished, sheet.previews) for sheet in coming] == [
        (step, 3, False, True) for step in (1, 2, 3)
    ]
    assert (last.step, last.steps, last.finished, last.previews) == (3, 3, True, False)
    seconds = [sheet.seconds for sheet in (*coming, last)]
    assert seconds == sorted(seconds)
    for sheet in (*coming, last):
        shape = [[len(row) for row in column] for column in sheet.pictures]
        assert shape == [[3, 3], [3, 3]]
        assert all(p.size == (64, 64) and p.mode == "RGB" for c in sheet.pictures for r in c for p in r)
    cells = [pixels(picture) for column in last.pictures for row in column for picture in row]
    nearest = min(np.abs(a - b).mean() for a, b in itertools.combinations(cells, 2))
    assert nearest > 0.5, "every cell has its own picture"


def test_the_bare_pipeline_is_left_as_it_was(base: ImageBase, lora: Variant) -> None:
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    own = base.pipeline.scheduler
    list(draw(base, [lora], ["a cat"], replace(FEW, scheduler="euler")))
    assert base.pipeline.scheduler is own
    assert "encode_prompt" not in vars(base.pipeline)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in base.model.modules())
    after = base.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_the_last_preview_is_the_picture_of_a_linear_decoder(base: ImageBase) -> None:
    """Where the decoder is linear in a latent's channels, as the built-in one nearly is, previews are exact."""

    class Linear(torch.nn.Module):
        def __init__(self, own: Any) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.config, self.dtype = own.config, own.dtype
            self.patch = torch.nn.ConvTranspose2d(4, 3, 8, 8)

        def decode(self, latents: torch.Tensor) -> Any:
            return type("Decoded", (), {"sample": self.patch(latents)})

    vae = Linear(base.pipeline.vae)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffusers.AutoencoderKL", Linear)
        found = sketch(vae, torch.device("cpu"))
    assert found is not None
    latents = torch.randn(2, 4, 3, 5)
    exact = vae.decode(latents / base.pipeline.vae.config.scaling_factor).sample
    wanted = ((exact.clamp(-1, 1) + 1) * 127.5).detach().permute(0, 2, 3, 1)
    assert found(latents).shape == (2, 24, 40, 3)
    assert (found(latents) - wanted).abs().max() <= 1


def test_decoders_of_other_kinds_have_no_previews(base: ImageBase, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sketch(torch.nn.Linear(2, 2), torch.device("cpu")) is None
    monkeypatch.setitem(vars(base), "sketch", None)
    first, *_, last = draw(base, [BASE], ["a cat"], FEW)
    assert (first.pictures, first.previews) == ((((None,),),), False)
    assert last.finished


def test_stop_keeps_the_previews(base: ImageBase) -> None:
    stop, sheets = threading.Event(), []
    for sheet in draw(base, [BASE], ["a cat"], replace(FEW, steps=500), stop):
        sheets.append(sheet)
        stop.set()
    last = sheets[-1]
    assert not last.finished
    assert last.previews
    assert last.step < 500
    assert last.pictures[0][0][0] is not None
    assert not base.lock.locked()


def test_stop_before_the_start_draws_nothing(base: ImageBase) -> None:
    stop = threading.Event()
    stop.set()
    (only,) = draw(base, [BASE], ["a cat"], FEW, stop)
    assert (only.pictures, only.step, only.finished) == ((((None,),),), 0, False)


def test_abandoning_the_generator_ends_the_work(base: ImageBase) -> None:
    coming = draw(base, [BASE], ["a cat"], replace(FEW, steps=500))
    next(coming)
    coming.close()  # type: ignore[attr-defined]
    assert not base.lock.locked()
    assert not [thread for thread in threading.enumerate() if thread.name == "draw"]


def test_errors_of_the_work_come_out(base: ImageBase, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **named: object) -> None:
        raise ZeroDivisionError("in the middle")

    monkeypatch.setattr(base.pipeline.vae, "decode", fail)
    with pytest.raises(ZeroDivisionError, match="in the middle"):
        list(draw(base, [BASE], ["a cat"], FEW))
    assert not base.lock.locked()


def test_equal_prompts_of_equal_text_encoders_are_encoded_once(
    base: ImageBase, lora: Variant, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Rows: base and a LoRA of the UNet alone share their embeddings, a LoRA with a text encoder has its own."""
    entry = library.add_folder(write_lora(tmp_path / "unet", "sd", 2, "peft", only=["unet"]))
    rows: list[int] = []
    encoder = base.pipeline.text_encoder
    handle = encoder.register_forward_pre_hook(
        lambda module, args, named: rows.append(len((args or (named["input_ids"],))[0])), with_kwargs=True
    )
    try:
        variants = [BASE, lora, Variant("unet", Weighting(((entry.key, 1.0),)))]
        list(draw(base, variants, ["a cat", "a hat"], replace(FEW, seeds=(0, 1, 2))))
    finally:
        handle.remove()
    assert rows == [4, 4], "two texts times two text encoders, with the prompt and without it"


def test_embeddings_are_spread_over_the_rows() -> None:
    found = spread(torch.tensor([[1.0], [2.0]]), [0, 1, 1, 0], 2)
    assert found.flatten().tolist() == [1, 2, 2, 1]
    shared = torch.zeros(7, 3)
    assert spread(shared, [0, 1, 1, 0], 2) is shared
    assert spread(None, [0], 1) is None
    assert spread(["a", "b"], [1, 1, 0], 2) == ["b", "b", "a"]


def test_rows_that_do_not_fit_are_drawn_in_smaller_batches(base: ImageBase, monkeypatch: pytest.MonkeyPatch) -> None:
    (*_, whole) = draw(base, [BASE], ["a cat"], replace(FEW, seeds=(0, 1, 2, 3, 4)))
    sizes: list[int] = []
    own = image.Painting.run

    def small(self: Any) -> None:
        sizes.append(len(self.rows))
        if len(self.rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        own(self)

    monkeypatch.setattr(image.Painting, "run", small)
    *_, found = draw(base, [BASE], ["a cat"], replace(FEW, seeds=(0, 1, 2, 3, 4)))
    assert sizes == [5, 2, 3, 1, 2]
    assert (found.finished, found.step, found.steps) == (True, 9, 9)
    for a, b in zip(found.pictures[0][0], whole.pictures[0][0], strict=True):
        assert np.abs(pixels(a) - pixels(b)).max() <= 1


def test_one_picture_too_large_is_told(base: ImageBase, monkeypatch: pytest.MonkeyPatch) -> None:
    def large(self: Any) -> None:
        raise RuntimeError("not enough memory: you tried to allocate 8 bytes")

    monkeypatch.setattr(image.Painting, "run", large)
    with pytest.raises(BaseError, match="one picture alone does not fit into memory"):
        list(draw(base, [BASE], ["a cat"], replace(FEW, seeds=(0, 1))))


def test_batches_are_as_large_as_memory_allows(base: ImageBase, monkeypatch: pytest.MonkeyPatch) -> None:
    row, decoder = memory.bytes_of_picture(base.pipeline, base.dtype, None)
    assert memory.bytes_of_picture(base.pipeline, base.dtype, (128, 128)) == (4 * row, 4 * decoder)
    monkeypatch.setattr(memory, "free_bytes", lambda device: decoder + 3 * row)
    assert memory.pictures_at_once(base, None) == 3
    assert memory.pictures_at_once(base, (256, 256)) == 1
    sheets: list[Sheet] = list(draw(base, [BASE], ["a cat"], replace(FEW, seeds=(0, 1, 2, 3))))
    assert [(sheet.step, sheet.steps) for sheet in sheets] == [(n, 6) for n in (1, 2, 3, 4, 5, 6, 6)]


@pytest.mark.parametrize(
    ("drawing", "told"),
    [
        (Drawing(steps=0), "cannot draw in 0 steps. Use 1 to 1000 steps."),
        (Drawing(steps=1001), "cannot draw in 1001 steps"),
        (Drawing(seeds=()), "nothing to draw"),
        (Drawing(seeds=(0, -1)), "-1 is no seed"),
        (Drawing(size=(64, 60)), "cannot draw 64 × 60 pixels. Use multiples of 8."),
        (Drawing(size=(0, 64)), "cannot draw 0 × 64 pixels"),
        (Drawing(scheduler="dreams"), "is no scheduler. Schedulers: ddim, "),
        (Drawing(steps=60, scheduler="lcm"), "cannot follow a pipeline that predicts the epsilon in 60 steps"),
    ],
)
def test_what_cannot_be_drawn_is_refused(base: ImageBase, drawing: Drawing, told: str) -> None:
    with pytest.raises(AdapterError) as caught:
        list(draw(base, [BASE], ["a cat"], drawing))
    assert told in str(caught.value)


def test_nothing_to_draw(base: ImageBase) -> None:
    for variants, prompts in (([], ["a cat"]), ([BASE], [])):
        with pytest.raises(AdapterError, match="nothing to draw"):
            list(draw(base, variants, prompts, FEW))


def test_an_adapter_of_another_base_is_refused(base: ImageBase, tmp_path: Path) -> None:
    entry = library.add_folder(write_lora(tmp_path / "other", "sdxl", 1, "peft"))
    with pytest.raises(AdapterError, match="It was made for another base model"):
        list(draw(base, [Variant("other", Weighting(((entry.key, 1.0),)))], ["a cat"], FEW))


def test_schedulers_are_refused_by_what_the_pipeline_predicts() -> None:
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

    clean = DDIMScheduler(prediction_type="sample")
    assert set(schedulers.usable(clean)) == set(schedulers.SCHEDULERS) - {"euler-a", "pndm"}
    assert "cannot follow a pipeline that predicts the sample" in str(schedulers.refused(clean, "euler-a"))
    flow = FlowMatchEulerDiscreteScheduler()
    assert schedulers.usable(flow) == ["euler"]
    told = "unipc: cannot follow a flow, which this pipeline predicts. Use its own, or: euler."
    assert schedulers.refused(flow, "unipc") == told
    assert set(schedulers.usable(DDIMScheduler())) == set(schedulers.SCHEDULERS)


@pytest.mark.parametrize("name", ["", "ddim", "euler", "dpm++", "unipc"])
def test_the_watched_latents_are_the_clean_ones(name: str) -> None:
    """A network that always sees the same clean sample behind the noise: what is noted must be that sample."""
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

    own: Any = DDIMScheduler(prediction_type="sample", clip_sample=False) if name else FlowMatchEulerDiscreteScheduler()
    made = schedulers.make(own, name)
    watch = schedulers.Watch(made)
    made.set_timesteps(4)
    torch.manual_seed(0)
    clean, noise = torch.randn(2, 2, 3, 4, 4)
    sample = noise * made.init_noise_sigma if name else noise
    for time in made.timesteps:
        predicted = clean if name else noise - clean  # a flow runs from the picture to the noise
        sample = made.step(predicted, time, sample, return_dict=False)[0]
        torch.testing.assert_close(watch.clean, clean, rtol=0, atol=1e-4)


def test_streamed_tells_all_and_raises_what_the_work_raises() -> None:
    def work(tell: Any) -> None:
        tell(1)
        tell(2)
        raise KeyError("late")

    coming: Iterator[int] = streamed(work, "test")
    assert [next(coming), next(coming)] == [1, 2]
    with pytest.raises(KeyError, match="late"):
        next(coming)
