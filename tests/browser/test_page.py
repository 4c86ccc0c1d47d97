"""The page as its visitors meet it: the first sight, the map's controls, errors, two visitors, dark, narrow."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.browser.test_main_job import tab

Opened = Callable[..., Page]
TABS = ("Library", "Map", "Merge", "Gate", "Compare")


def test_the_page_opens_ready_to_compare(opened: Opened) -> None:
    page = opened()
    picked = page.get_by_role("group", name="Picked").inner_text()
    assert picked.startswith("Picked")
    expect(page.locator("#unit-map .legend .traces")).to_have_count(3)
    expect(page.get_by_role("button", name="Compare them")).to_be_enabled()
    tab(page, "Merge")
    expect(page.get_by_role("table", name="Sources").locator("tbody tr")).to_have_count(3)
    tab(page, "Library")
    expect(page.get_by_role("checkbox", checked=True)).to_have_count(3)


def test_the_first_comparison_and_umap_are_there_at_once(opened: Opened) -> None:
    page = opened()
    page.get_by_role("button", name="Compare them").click()
    expect(page.get_by_text("Computed ahead")).to_be_visible(timeout=15_000)  # it takes a minute on two cores
    assert page.get_by_role("region", name="LoRA-LEGO").locator(".by-text").first.inner_text().strip()
    expect(page.get_by_role("button", name="Export JSON")).to_be_enabled()
    tab(page, "Map")
    page.get_by_label("UMAP", exact=True).check()
    expect(page.get_by_text("while UMAP is computed")).to_have_count(0)
    expect(page.get_by_text("600 of 600 bricks shown")).to_be_visible()


def test_the_map_answers_its_controls(opened: Opened) -> None:
    page = opened()
    page.locator("#unit-map .point").last.hover(force=True)
    told = page.locator("#unit-map .hoverlayer text").filter(has_text=re.compile("."))
    expect(told).to_have_text([re.compile("^(Past|Sentiment|Language).*rank index")])
    page.get_by_label("Layer", exact=True).click()
    page.get_by_role("option", name="layer 3", exact=True).click()
    expect(page.get_by_text("one module")).to_be_visible()
    page.get_by_label("number input for Clusters (k)").fill("5")
    page.keyboard.press("Tab")
    expect(page.get_by_text("5 clusters")).to_be_visible()
    expect(page.locator("#clusters .xtick")).to_have_count(5)
    page.get_by_label("cluster", exact=True).check()
    expect(page.locator("#unit-map .legend")).to_have_count(0)


def test_a_lasso_selects_bricks_and_they_can_be_muted(opened: Opened) -> None:
    page = opened()
    area = page.locator("#unit-map .nsewdrag").first.bounding_box()
    assert area
    corners = [(0.05, 0.05), (0.95, 0.05), (0.95, 0.95), (0.05, 0.95), (0.05, 0.06)]
    where = [(area["x"] + area["width"] * x, area["y"] + area["height"] * y) for x, y in corners]
    page.mouse.move(*where[0])
    page.mouse.down()
    for x, y in where[1:]:
        page.mouse.move(x, y, steps=6)
    page.mouse.up()
    expect(page.get_by_role("heading", name=re.compile(r"\d+ bricks selected"))).to_be_visible()
    page.get_by_role("button", name="Mute the selected bricks").click()
    expect(page.get_by_role("group", name="Picked")).to_contain_text("Sum without")


def test_a_wrong_folder_is_a_message(opened: Opened) -> None:
    page = opened()
    tab(page, "Library")
    page.get_by_role("button", name="Add adapters").click()
    page.get_by_label("Local folder").fill("/no/such/adapter")
    page.get_by_role("button", name="Add the folder").click()
    expect(page.get_by_text("/no/such/adapter: does not exist")).to_be_visible()
    expect(page.get_by_role("checkbox", checked=True)).to_have_count(3)


def test_two_visitors_do_not_disturb_each_other(opened: Opened) -> None:
    mine, theirs = opened(), opened()
    dropped = []
    for page, which in ((mine, 0), (theirs, 2)):
        tab(page, "Library")
        card = page.get_by_role("checkbox", checked=True).nth(which)
        dropped.append(card.get_attribute("aria-label"))
        card.click()
        expect(page.get_by_role("checkbox", checked=True)).to_have_count(2)
    for page, gone, kept in ((mine, *dropped), (theirs, *reversed(dropped))):
        strip = page.get_by_role("group", name="Picked")
        expect(strip).not_to_contain_text(gone)
        expect(strip).to_contain_text(kept)


def test_a_comparison_can_be_stopped(opened: Opened) -> None:
    page = opened()
    tab(page, "Compare")
    page.get_by_label("Prompts").fill("Write a long story about a lighthouse keeper.")
    page.get_by_label("number input for Length").fill("512")
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.get_by_text(re.compile(r"token [1-9]\d* of at most 512"))).to_be_visible(timeout=120_000)
    page.get_by_role("button", name="Stop comparing").click()
    expect(page.get_by_text("Stopped.")).to_be_visible()
    expect(page.get_by_role("button", name="Compare", exact=True)).to_be_enabled()
    assert page.get_by_role("region", name="Base").locator(".by-text").first.inner_text().strip()
    # At once again: what was stopped is over by then, and the new one is not taken for it.
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.get_by_text(re.compile(r"token [1-9]\d* of at most 512"))).to_be_visible(timeout=120_000)
    page.get_by_role("button", name="Stop comparing").click()
    expect(page.get_by_text("Stopped.")).to_be_visible()


def test_scores_fill_a_table(opened: Opened) -> None:
    page = opened()
    tab(page, "Compare")
    variants = page.get_by_role("group").filter(has_text="One column each.").get_by_role("checkbox")
    for i in range(1, variants.count()):
        variants.nth(i).uncheck()
    expect(variants.first).to_be_checked()
    page.get_by_label("number input for Rows per task").fill("10")
    page.keyboard.press("Tab")
    page.get_by_role("button", name="Score", exact=True).click()
    expect(page.get_by_text("At most 10 held-out rows a task")).to_be_visible(timeout=240_000)
    row = page.get_by_role("table", name="Task scores").locator("tbody tr")
    expect(row).to_have_count(1)
    expect(row).to_contain_text("nats")


def lightness(colour: str) -> float:
    """Mean of the channels of a CSS rgb colour, 0 to 255."""
    return sum(map(float, re.findall(r"[\d.]+", colour)[:3])) / 3


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_both_themes(opened: Opened, scheme: str) -> None:
    page = opened(color_scheme=scheme)
    style = "(query) => { const s = getComputedStyle(document.querySelector(query)); return [s.backgroundColor, s.color, s.fill]; }"
    back = lightness(page.evaluate(style, "body")[0])
    text = lightness(page.evaluate(style, "h1")[1])
    label = lightness(page.evaluate(style, "#clusters .xtick text")[2])
    assert (back > 200) == (scheme == "light")
    assert abs(back - text) > 120
    assert abs(back - label) > 120


@pytest.mark.parametrize("width", [390, 768, 2560])
def test_nothing_overflows_and_all_stands_in_the_middle(opened: Opened, width: int) -> None:
    page = opened(viewport={"width": width, "height": 844})
    for name in TABS:
        tab(page, name)
        page.wait_for_timeout(500)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        box = page.get_by_role("tabpanel").filter(visible=True).bounding_box()
        assert box
        assert box["width"] >= min(0.85 * width, 1200), name
        assert abs(box["x"] + box["width"] / 2 - width / 2) <= 10, name


def test_a_page_left_alone_comes_to_rest(opened: Opened) -> None:
    page, asked = opened(), []
    page.on("request", lambda request: asked.append(request.url) if "/gradio_api/" in request.url else None)
    tab(page, "Library")
    for card in page.get_by_role("checkbox", checked=True).all()[::-1]:
        card.click()  # each before the page has followed the last
    expect(page.get_by_role("checkbox", checked=True)).to_have_count(0)
    for _ in range(20):
        asked.clear()
        page.wait_for_timeout(3000)
        if not asked:
            return
    raise AssertionError(f"it still asks after a minute: {asked}")
