"""Gates over pictures in a browser: trained on uploaded pictures, stopped, their choices seen step by step, masked and compared."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from tests.browser.test_gate import masks, short
from tests.browser.test_main_job import tab
from tests.browser.test_pictures import choose, shown
from tests.tiny_pipelines import alike, tiny_folder, write_lora

Opened = Callable[..., Page]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pipeline, two LoRAs for it, and pictures with captions."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    tiny_folder(folder / "base", "sd")
    for seed, name in enumerate(("first", "second"), 1):
        write_lora(folder / name, "sd", seed, "peft", only=["unet"])
    (folder / "set").mkdir()
    lines = []
    for number, text in enumerate(("a hat", "a cat", "a dog")):
        pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "set" / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", "text": text}) + "\n")
    (folder / "set" / "metadata.jsonl").write_text("".join(lines))
    return folder


def upload(page: Page, files: list[Path]) -> None:
    """Choose pictures of one's own."""
    field = page.locator("input[type=file][accept*=webp]")
    if not field.count():
        page.get_by_role("button", name="Pictures of your own").click()
    field.set_input_files(files)


def drawn(page: Page, count: int) -> Locator:
    """The pictures below the toggles, once they are done."""
    grid = page.get_by_role("tabpanel").filter(visible=True).get_by_role("group", name="Pictures")
    expect(grid.locator("img:not(.blurred)")).to_have_count(count)
    return grid


def test_gates_over_pictures_are_trained_watched_masked_and_compared(opened: Opened, tiny: Path) -> None:
    page = opened()
    choose(page, tiny)
    tab(page, "Gate")
    expect(page.get_by_text("No trained gates yet")).to_be_visible()

    # Without captions it is said at once; with them, what the training will take.
    files = sorted((tiny / "set").iterdir())
    upload(page, files[:-1])
    expect(page.get_by_text("there is no metadata.jsonl with the captions")).to_be_visible()
    page.get_by_role("button", name="Clear").click()
    upload(page, files)
    expect(page.get_by_text(re.compile(r"About .* for 50 steps of 12 samples; \d+ gates"))).to_be_visible()
    short(page, 2)
    page.get_by_role("radio", name="flatten", exact=True).check()
    page.get_by_label("Name of the gates").fill("my gates")
    page.get_by_role("button", name="Train", exact=True).click()
    expect(page.get_by_text("Kept as “my gates”")).to_be_visible(timeout=240_000)
    expect(page.locator("#curves .scatterlayer .point")).to_have_count(6)
    expect(page.locator("#gates-now .heatmaplayer image")).to_be_visible()
    expect(page.locator("#gates-now .xtick")).to_have_text([re.compile("first"), re.compile("second")])

    # What they choose block by block and step by step, and their picture without one of the LoRAs beside it.
    page.get_by_role("spinbutton", name=re.compile("Steps of the pictures")).fill("3")
    page.get_by_label("Another prompt").fill("")
    page.get_by_label("Prompt for the gates").fill("a fox")
    page.get_by_role("button", name="Show choices").click()
    expect(page.locator("#choices .xtitle")).to_have_text("a fox")
    expect(page.locator("#course .heatmaplayer image")).to_have_count(2)
    expect(page.locator("#other-course")).to_be_hidden()
    labels = [" ".join(text.split()) for text in page.locator("#choices .ytick").all_text_contents()]
    blocks = [label.split()[0] for label in labels if label.split()[0] in ("down", "mid", "up")]
    assert list(dict.fromkeys(blocks)) == ["down", "mid", "up"]
    whole = shown(page, drawn(page, 1))
    masks(page).nth(1).check()
    grid = drawn(page, 2)
    both = shown(page, grid)
    assert list(both) == ["With all: a fox, seed 0", "Without second: a fox, seed 0"]
    first, second = both.values()
    assert alike(first, whole["With all: a fox, seed 0"])
    assert np.abs(first.astype(int) - second).mean() > 0.5
    grid.get_by_role("button").first.click()
    expect(page.locator("dialog").get_by_role("status")).to_have_text("With all: a fox, seed 0")
    expect(page.locator("dialog option")).to_have_text(["Without second: a fox, seed 0"])
    page.get_by_role("button", name="Close").click()

    # The same two as columns of a comparison.
    page.get_by_role("button", name="Add this mask to Compare").click()
    expect(page.get_by_text("joined the variants")).to_be_visible()
    tab(page, "Compare")
    page.get_by_label("Prompts").fill("a fox")
    page.get_by_role("spinbutton", name=re.compile("^number input for Steps$|^Steps$")).fill("3")
    page.get_by_role("button", name="Compare", exact=True).click()
    compared = page.get_by_role("tabpanel").filter(visible=True).get_by_role("group", name="Pictures")
    expect(compared.locator("img:not(.blurred)")).to_have_count(6, timeout=240_000)
    pictures = shown(page, compared)
    assert alike(pictures["my gates: a fox, seed 0"], first)
    assert alike(pictures["my gates without second: a fox, seed 0"], second)


def test_stop_keeps_what_was_learned_and_nothing_overflows_on_a_phone(opened: Opened, tiny: Path) -> None:
    page = opened(viewport={"width": 390, "height": 844})
    choose(page, tiny)
    tab(page, "Gate")
    page.get_by_role("checkbox", name="zib").check()
    short(page, 500)
    page.get_by_role("button", name="Train", exact=True).click()
    expect(page.get_by_text(re.compile("step [1-9].* of 500"))).to_be_visible(timeout=240_000)
    page.get_by_role("button", name="Stop training").click()
    expect(page.get_by_text(re.compile(r"\d+ of 500 steps in .* Kept as"))).to_be_visible(timeout=240_000)
    expect(page.get_by_role("button", name="Train", exact=True)).to_be_enabled()
    drawn(page, 1)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_stop_ends_what_the_gates_draw_and_it_may_be_asked_for_again(opened: Opened) -> None:
    """The built-in model's gates: their pictures stop where they are, stay, and come when asked for again."""
    page = opened()
    page.get_by_role("button", name="Try it with pictures").click()
    expect(page.get_by_text("Computed ahead.")).to_be_visible()
    tab(page, "Gate")
    grid = drawn(page, 2)
    page.get_by_role("spinbutton", name=re.compile("Steps of the pictures")).fill("150")
    page.get_by_role("button", name="Show choices").click()
    expect(page.get_by_text(re.compile(r"^step \d+ of 150, about .* left$"))).to_be_visible()
    stop = page.get_by_role("button", name="Stop looking")
    stop.click()
    expect(page.get_by_text("Stopped.", exact=True)).to_be_visible()
    expect(stop).to_be_hidden()
    expect(grid.locator("img")).to_have_count(2)
    page.wait_for_timeout(1500)
    expect(page.get_by_text("Stopped.", exact=True)).to_be_visible()
    page.get_by_role("spinbutton", name=re.compile("Steps of the pictures")).fill("3")
    page.get_by_role("button", name="Show choices").click()
    expect(page.get_by_text("Stopped.", exact=True)).to_be_hidden()
    expect(page.locator("#course .xtick")).to_have_text(["1", "2", "3"])
