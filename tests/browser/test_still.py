"""Nothing jumps: the page's layout shifts, as Chromium measures them, while it opens and while the main job is done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser.test_main_job import tab

Opened = Callable[..., Page]
GOOD = 0.1
"""The share of the window that may have moved at one step: what Web Vitals calls good for a whole visit."""
WATCH = """
window.shifts = [];
new PerformanceObserver((list) => window.shifts.push(...list.getEntries().filter((entry) => !entry.hadRecentInput).map((entry) => ({
  share: entry.value,
  moved: entry.sources.map(({node, previousRect, currentRect}) =>
    `${(node?.className ?? node?.nodeName)} ${(node?.textContent ?? '').slice(0, 40)}: ${previousRect.y} to ${currentRect.y}`),
})))).observe({type: 'layout-shift', buffered: true});
"""


def moved(page: Page) -> list[dict[str, Any]]:
    """What has moved since the last look, other than at once after an input."""
    page.wait_for_timeout(1000)
    return page.evaluate("() => window.shifts.splice(0)")


def still(page: Page, step: str) -> None:
    """Fail, naming what moved, where more of the window did than is good."""
    found = moved(page)
    assert sum(shift["share"] for shift in found) < GOOD, (step, sorted(found, key=lambda shift: -shift["share"])[:4])


@pytest.mark.parametrize("width", [1440, 390])
def test_nothing_jumps_while_it_opens_and_works(opened: Opened, width: int) -> None:
    page = opened(script=WATCH, viewport={"width": width, "height": 900})
    still(page, "opened")
    for name in ("Library", "Map", "Merge", "Gate", "Compare"):
        tab(page, name)
        still(page, name)
    tab(page, "Merge")
    page.get_by_role("button", name="Merge", exact=True).click()
    expect(page.get_by_text("Report of", exact=False).filter(visible=True).first).to_be_visible()
    still(page, "merged")
    tab(page, "Compare")
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.get_by_role("button", name="Stop comparing")).to_be_visible()
    expect(page.get_by_role("button", name="Stop comparing")).to_be_hidden()
    still(page, "compared")


@pytest.mark.parametrize("width", [1440, 390])
def test_nothing_jumps_from_texts_to_pictures_and_back(opened: Opened, width: int) -> None:
    page = opened(script=WATCH, viewport={"width": width, "height": 900})
    still(page, "opened")
    for way in ("Try it with pictures", "Try it with texts"):
        page.get_by_role("button", name=way).click()
        expect(page.get_by_role("button", name=way)).to_be_hidden()
        expect(page.get_by_text("Computed ahead.")).to_be_visible()
        still(page, way)


def test_a_jump_is_seen(opened: Opened) -> None:
    """The measure itself: what pushes the page down counts."""
    page = opened(script=WATCH)
    still(page, "opened")
    page.evaluate("document.querySelector('.by-header').style.marginTop = '300px'")
    assert sum(shift["share"] for shift in moved(page)) > GOOD
