"""The Gate tab in a browser: gates that ship are alive at first sight; train, watch, mask, compare; errors and Stop."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Locator, Page, expect

from tests.browser.test_main_job import tab

Opened = Callable[..., Page]


def open_gate(page: Page) -> None:
    """Go to the tab, and wait for what the gates that ship choose and answer."""
    tab(page, "Gate")
    expect(page.locator("#choices .heatmaplayer image")).to_be_visible()
    expect(answer(page, "With all").first).not_to_be_empty()


def answer(page: Page, column: str) -> Locator:
    """The texts of a column of answers."""
    return page.get_by_role("region", name=column).locator(".by-text")


def masks(page: Page) -> Locator:
    """The toggles, one a LoRA."""
    return page.get_by_role("group").filter(has_text="Tick what the gates may not use").get_by_role("checkbox")


def settled(page: Page, column: str) -> list[str]:
    """A column's texts once they stand still."""
    expect(page.get_by_role("region", name=column).locator(".by-cursor")).to_have_count(0)
    return [text.strip() for text in answer(page, column).all_inner_texts()]


def short(page: Page, steps: int) -> None:
    """Set a short training."""
    page.get_by_label("Steps", exact=True).fill(str(steps))
    page.get_by_label("Batch", exact=True).fill("2")
    if not page.get_by_label("Calibration", exact=True).is_visible():
        page.get_by_role("button", name="More about the training").click()
    page.get_by_label("Calibration", exact=True).fill("2")
    page.get_by_label("Calibration", exact=True).press("Tab")


def test_gates_are_trained_watched_masked_and_compared(opened: Opened) -> None:
    page = opened()
    open_gate(page)
    expect(page.locator("#choices .ytick")).to_have_count(30)
    expect(page.locator("#choices .xtick")).to_have_text(
        [re.compile(n) for n in ("Past tense", "Sentiment", "Language")]
    )
    expect(page.get_by_text(re.compile(r"About .* for 50 steps of 12 samples; 30 gates"))).to_be_visible()

    # Two LoRAs, two steps.
    tab(page, "Library")
    page.get_by_role("checkbox", name=re.compile("Language of a phrase")).click()
    expect(page.get_by_role("checkbox", checked=True)).to_have_count(2)
    tab(page, "Gate")
    short(page, 2)
    page.get_by_label("Name of the gates").fill("my gates")
    expect(page.get_by_text(re.compile("for 2 steps of 2 samples"))).to_be_visible()
    page.get_by_role("button", name="Train", exact=True).click()
    expect(page.get_by_text("Kept as “my gates”")).to_be_visible(timeout=240_000)
    expect(page.locator("#curves .scatterlayer .trace")).to_have_count(3)
    expect(page.locator("#curves .scatterlayer .point")).to_have_count(6)
    expect(page.locator("#gates-now .heatmaplayer image")).to_be_visible()
    expect(page.locator("#gates-now .xtick")).to_have_count(2)
    expect(page.get_by_role("group", name="Picked")).to_contain_text("my gates")

    # What they choose, and answer without one of them.
    expect(page.get_by_text("trained 2 steps of 2 samples")).to_be_visible()
    expect(page.locator("#choices .xtick")).to_have_count(2)
    expect(masks(page)).to_have_count(2)
    review = "Is this review positive or negative?\nA warm, funny and wonderful film."
    page.get_by_label("Prompt for the gates").fill(review)
    page.get_by_label("Another prompt").fill("")
    page.get_by_role("button", name="Show choices").click()
    expect(page.locator("#choices .xtitle")).to_contain_text("Is this review")
    expect(page.locator("#other-choices")).to_be_hidden()
    page.get_by_role("button", name="Show choices").click()  # the same again leaves what is there
    page.wait_for_timeout(1500)
    expect(page.locator("#choices .heatmaplayer image")).to_be_visible()
    masks(page).nth(1).check()
    expect(page.get_by_role("region", name=re.compile("^Without Sentiment"))).to_be_visible()
    whole, masked = settled(page, "With all"), settled(page, "Without Sentiment of a review")
    assert whole[0]
    assert masked[0]
    assert whole != masked

    # The same two as columns of a comparison.
    page.get_by_role("button", name="Add this mask to Compare").click()
    expect(page.get_by_text("joined the variants")).to_be_visible()
    tab(page, "Compare")
    page.get_by_label("Prompts").fill(review.replace("\n", "\\n"))
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.get_by_role("button", name="Export JSON")).to_be_enabled(timeout=240_000)
    assert settled(page, "my gates without Sentiment of a review") == masked
    for name in ("Base", "Past tense", "Sentiment of a review", "Exact sum"):
        expect(page.get_by_role("region", name=name, exact=True)).to_be_visible()
    for name in ("MoLE three-tasks", "LoRA-LEGO k=2r"):  # made of three adapters, two of which are picked now
        expect(page.get_by_role("region", name=name, exact=True)).to_have_count(0)


def test_stop_keeps_what_was_learned(opened: Opened) -> None:
    page = opened()
    open_gate(page)
    short(page, 500)
    page.get_by_role("button", name="Train", exact=True).click()
    expect(page.get_by_text(re.compile("step [1-9].* of 500"))).to_be_visible(timeout=240_000)
    page.get_by_role("button", name="Stop training").click()
    expect(page.get_by_text(re.compile(r"\d+ of 500 steps in .* Kept as"))).to_be_visible(timeout=240_000)
    expect(page.get_by_role("button", name="Train", exact=True)).to_be_enabled()


def test_what_cannot_be_done_is_said(opened: Opened, tmp_path: Path) -> None:
    page = opened()
    open_gate(page)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "one", "answer": "two"}\n{"prompt": "no answer"}\n')
    page.get_by_role("button", name="Rows of your own").click()
    page.locator("input[type=file][accept*=jsonl]").set_input_files(rows)
    expect(page.get_by_text("rows.jsonl, line 2: is not a row")).to_be_visible()
    page.get_by_role("button", name="Add gates").click()
    page.get_by_label("Folder of gates").fill("/no/such/gates")
    page.get_by_role("button", name="Add this folder").click()
    expect(page.get_by_text("/no/such/gates: holds no trained gates")).to_be_visible()
    for i in range(3):
        masks(page).nth(i).check()
    expect(page.get_by_text("everything is masked. Keep at least one LoRA.")).to_be_visible()
