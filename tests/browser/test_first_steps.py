"""What a newcomer meets: four hints, once, and words that say what they mean."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from components.glossary import LEADS, WORDS
from components.hints import STEPS
from tests.browser.conftest import Watch
from tests.browser.test_main_job import tab

Opened = Callable[..., Page]
COMPLAINTS = """() => {
  window.complaints = [];
  const toasts = () => [...document.querySelectorAll('[data-testid="toast-body"]')].map((toast) => toast.innerText);
  const note = () => window.complaints.push(...toasts());
  new MutationObserver(note).observe(document.body, {childList: true, subtree: true});
}"""


def test_hints_lead_through_the_tabs_once(opened: Opened, watch: Watch) -> None:
    page = opened(hints=True)
    card = page.get_by_role("region", name="First steps")
    for number, (name, heading, told) in enumerate(STEPS, start=1):
        expect(card).to_contain_text(f"{number} of {len(STEPS)}")
        expect(card).to_contain_text(heading)
        expect(card).to_contain_text(told)
        expect(page.get_by_role("tab", name=name)).to_have_attribute("aria-selected", "true")
        expect(card.get_by_role("button")).to_have_text(["Next", "Skip"] if number < len(STEPS) else ["Done"])
        card.get_by_role("button", name="Done" if number == len(STEPS) else "Next").click()
    expect(card).to_be_hidden()
    watch.reload(page)
    page.get_by_role("group", name="Picked").get_by_text("LoRA-LEGO").wait_for()
    expect(card).to_be_hidden()
    page.get_by_role("button", name="Show the first steps").click()
    expect(card).to_contain_text("1 of")
    card.get_by_role("button", name="Skip").click()
    expect(card).to_be_hidden()


@pytest.mark.parametrize("width", [1440, 390])
def test_a_word_says_what_it_means(opened: Opened, width: int) -> None:
    page = opened(viewport={"width": width, "height": 900})
    tab(page, "Map")
    panel = page.get_by_role("tabpanel").filter(visible=True)
    panel.get_by_role("button", name="cluster", exact=True).click()
    meaning = page.get_by_role("note").filter(has_text=WORDS["cluster"])
    expect(meaning).to_be_in_viewport(ratio=1)
    page.keyboard.press("Escape")
    expect(meaning).to_be_hidden()
    panel.get_by_role("button", name="brick", exact=True).press("Enter")
    expect(page.get_by_role("note").filter(has_text=WORDS["brick"])).to_be_in_viewport(ratio=1)


def test_every_tab_says_what_it_is_for(opened: Opened) -> None:
    page = opened()
    for name, text in LEADS.items():
        tab(page, name.capitalize())
        first = text.split("]. ")[-1].split("[")[0]
        expect(page.get_by_role("tabpanel").filter(visible=True)).to_contain_text(first.strip())


def test_pictures_are_one_click_away(opened: Opened) -> None:
    """The built-in image model: the first comparison is there by itself, nothing complains, and another click leads back."""
    page = opened()
    page.evaluate(COMPLAINTS)
    page.get_by_role("button", name="Try it with pictures").click()
    expect(page.get_by_text("Computed ahead.")).to_be_visible()
    grid = page.get_by_role("group", name="Pictures")
    assert grid.locator("img").count() >= 10
    assert len(set(grid.locator("img").evaluate_all("images => images.map((image) => image.src)"))) >= 10
    expect(grid.get_by_title("Text alignment")).to_have_count(grid.locator("img").count())
    assert page.evaluate("window.complaints") == []
    offered = page.locator("button[data-index]").filter(visible=True).all_inner_texts()
    assert len(set(offered)) == len(offered)
    tab(page, "Map")  # drawn while it was hidden, its figures take the room they have now
    fits = "(plot) => Math.abs(plot.clientWidth - plot._fullLayout.width) < 2"
    for figure in (page.locator("#unit-map .js-plotly-plot"), page.locator("#clusters .js-plotly-plot")):
        expect(figure).to_be_visible()
        page.wait_for_function(fits, arg=figure.element_handle())
    page.get_by_role("button", name="Try it with texts").click()
    expect(page.get_by_role("status", name="Base model state")).to_contain_text("SmolLM2")
