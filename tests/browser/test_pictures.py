"""Pictures in a browser: two LoRAs of a pipeline merged and compared, looked at pixel by pixel, and brought back by a drop."""

from __future__ import annotations

import base64
import io
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from backends import library
from backends.bases import load_base
from backends.image import Drawing, Variant, draw
from mole.pool import Weighting
from tests.browser.test_main_job import tab
from tests.tiny_pipelines import tiny_folder, write_lora

Opened = Callable[..., Page]
PROMPTS, SEEDS, STEPS = ["a fox", "an owl"], (0, 5), 2
NAMES = ["Base", "first", "second", "Exact sum", "my merge"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pipeline and two LoRAs for it."""
    folder = tmp_path_factory.mktemp("pictures")
    tiny_folder(folder / "base", "sd")
    for seed, name in enumerate(("first", "second"), 1):
        write_lora(folder / name, "sd", seed, "peft")
    return folder


def choose(page: Page, tiny: Path) -> None:
    """Load the pipeline and pick both LoRAs."""
    tab(page, "Library")
    base = page.get_by_role("combobox", name="Base model").or_(page.locator("input[aria-label='Base model']")).first
    base.fill(str(tiny / "base"))
    base.press("Enter")
    expect(page.get_by_role("status", name="Base model state")).to_contain_text(re.compile(r"^base.*ready"))
    page.get_by_role("button", name="Add adapters").click()
    for name in ("first", "second"):
        page.get_by_label("Local folder").fill(str(tiny / name))
        page.get_by_role("button", name="Add the folder").click()
        expect(page.get_by_role("checkbox", name=name)).to_be_checked()


def compare(page: Page) -> None:
    """Draw all variants."""
    tab(page, "Compare")
    page.get_by_label("Prompts").fill("\n".join(PROMPTS))
    page.get_by_label("Seeds").fill(", ".join(map(str, SEEDS)))
    page.get_by_role("spinbutton", name=re.compile("Steps")).fill(str(STEPS))
    page.get_by_role("button", name="Compare", exact=True).click()


def finished(page: Page) -> Locator:
    """The grid, once its pictures are done."""
    grid = page.get_by_role("group", name="Pictures")
    expect(page.get_by_text(re.compile("5 variants × 2 prompts × 2 seeds in"))).to_be_visible(timeout=240_000)
    expect(grid.locator("img")).to_have_count(len(NAMES) * len(PROMPTS) * len(SEEDS))
    return grid


def shown(page: Page, grid: Locator) -> dict[str, np.ndarray]:
    """The pixels of every picture by its caption, from the files that the browser shows."""
    found = {}
    for image in grid.locator("img").all():
        data = page.request.get(image.evaluate("image => image.src")).body()
        found[str(image.get_attribute("alt"))] = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    return found


def download(page: Page, name: str, place: Path) -> Path:
    """Click a download button."""
    with page.expect_download() as saved:
        page.get_by_role("button", name=name).or_(page.get_by_role("link", name=name)).first.click()
    saved.value.save_as(place)
    return place


def drop(page: Page, file: Path) -> None:
    """Drop a file onto the page."""
    data = base64.b64encode(file.read_bytes()).decode()
    transfer = page.evaluate_handle(
        """([data, name]) => {
          const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
          const transfer = new DataTransfer();
          transfer.items.add(new File([bytes], name, {type: 'image/png'}));
          return transfer;
        }""",
        [data, file.name],
    )
    for event in ("dragover", "drop"):
        page.dispatch_event("h1", event, {"dataTransfer": transfer})


def test_two_loras_are_merged_and_their_pictures_compared(opened: Opened, tiny: Path, tmp_path: Path) -> None:
    page = opened(accept_downloads=True)
    choose(page, tiny)
    tab(page, "Map")
    page.get_by_role("combobox", name="Kind of module").click()
    page.get_by_role("option", name="conv1 36 → 4", exact=True).click()
    expect(page.locator("#clusters .xtick").first).to_have_text("down 0.0")
    tab(page, "Merge")
    page.get_by_label("Name", exact=True).fill("my merge")
    page.get_by_role("button", name="Merge", exact=True).click()
    expect(page.get_by_role("heading", name="my merge")).to_be_visible(timeout=120_000)
    merged = download(page, "Download adapter (zip)", tmp_path / "merge.zip")
    compare(page)
    found = shown(page, finished(page))
    assert list(found) == [f"{n}: {p}, seed {s}" for p in PROMPTS for s in SEEDS for n in NAMES]

    # What the backend draws with the downloaded merge.
    with zipfile.ZipFile(merged) as archive:
        archive.extractall(tmp_path)
    key = library.add_folder(tmp_path / "my-merge").key
    variants = [Variant("base"), Variant("merge", Weighting(((key, 1.0),)))]
    *_, drawn = draw(load_base(str(tiny / "base")), variants, PROMPTS, Drawing(steps=STEPS, seeds=SEEDS))
    for v, name in enumerate(("Base", "my merge")):
        for p, prompt in enumerate(PROMPTS):
            for s, seed in enumerate(SEEDS):
                picture = np.asarray(drawn.pictures[v][p][s]).astype(int)
                assert np.abs(picture - found[f"{name}: {prompt}, seed {seed}"]).max() <= 1
    far = np.abs(found["Base: a fox, seed 0"].astype(int) - found["my merge: a fox, seed 0"])
    assert far.mean() > 2

    # The same two, large: their difference as the browser finds it.
    page.get_by_role("button", name="Enlarge my merge: a fox, seed 0").click()
    page.get_by_role("radio", name="Difference").check()
    text = page.locator("dialog").get_by_role("status")
    expect(text).to_contain_text("my merge: a fox, seed 0, against Base: a fox, seed 0")
    assert float(re.search(r"mean difference ([\d.]+)", text.inner_text())[1]) == pytest.approx(far.mean(), abs=0.01)
    page.get_by_role("button", name="Close").click()

    # The sheet brings all of it back, in a page that knows nothing.
    sheet = download(page, "Sheet (PNG)", tmp_path / "sheet.png")
    assert json.loads(Image.open(sheet).info["brickyard"])["prompts"] == PROMPTS
    other = opened()
    drop(other, sheet)
    again = shown(other, finished(other))
    assert other.get_by_label("Prompts").input_value() == "\n".join(PROMPTS)
    for caption, picture in found.items():
        assert np.array_equal(again[caption], picture)


def test_a_picture_without_a_recipe_is_told(opened: Opened, tmp_path: Path) -> None:
    page = opened()
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    drop(page, tmp_path / "plain.png")
    expect(page.get_by_text("plain.png: carries no recipe of a comparison")).to_be_visible()


def test_pictures_can_be_stopped_and_nothing_overflows_on_a_phone(opened: Opened, tiny: Path) -> None:
    page = opened(viewport={"width": 390, "height": 844})
    choose(page, tiny)
    tab(page, "Compare")
    page.get_by_role("spinbutton", name=re.compile("Steps")).fill("150")
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.get_by_text(re.compile("step [1-9].* of 150"))).to_be_visible(timeout=240_000)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.get_by_role("button", name="Stop comparing").click()
    expect(page.get_by_text("Stopped.")).to_be_visible()
    expect(page.get_by_role("group", name="Pictures").locator("img").first).to_be_visible()
    expect(page.get_by_role("button", name="Compare", exact=True)).to_be_enabled()
