"""One selection that every view of the map follows, with a real mouse and keyboard; a muted cluster in the comparison."""

from __future__ import annotations

import re
from collections.abc import Callable

from playwright.sync_api import Locator, Page, expect

from tests.browser.test_main_job import tab

Opened = Callable[..., Page]
TRIED = re.compile(r"^2 variants × \d+ prompts? in")
GREY = "() => [...document.querySelectorAll('#unit-map .point')].filter((p) => +p.style.opacity < 0.5).length"


def lasso(page: Page, left: float = 0.05, right: float = 0.95) -> None:
    """Draw a lasso over the map, from one share of its width to another."""
    area = page.locator("#unit-map .nsewdrag").first.bounding_box()
    assert area
    corners = [(left, 0.05), (right, 0.05), (right, 0.95), (left, 0.95), (left, 0.06)]
    where = [(area["x"] + area["width"] * x, area["y"] + area["height"] * y) for x, y in corners]
    page.mouse.move(*where[0])
    page.mouse.down()
    for x, y in where[1:]:
        page.mouse.move(x, y, steps=6)
    page.mouse.up()


def press(page: Page, what: Locator) -> None:
    """Click the middle of a mark; the figure must have seen the mouse over it before."""
    what.wait_for()
    box = what.bounding_box()
    assert box
    at = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(at[0] - 1, at[1])
    page.mouse.move(*at)
    page.wait_for_timeout(300)
    page.mouse.click(*at)


def selected(page: Page) -> Locator:
    return page.get_by_role("heading", name=re.compile(r"^[\d,]+ bricks? selected$"))


def test_a_lasso_is_followed_and_escape_clears(opened: Opened) -> None:
    page = opened()
    rows = page.get_by_role("table", name="Bricks").locator("tbody tr")
    expect(rows).to_have_count(100)
    lasso(page, right=0.5)
    expect(selected(page)).to_be_visible()
    count = int(re.sub(r"\D", "", selected(page).inner_text()))
    total = page.locator("#unit-map .point").count()
    assert 0 < count < total
    assert page.evaluate(GREY) == total - count, "the others are grey and still there"
    expect(rows).to_have_count(min(count, 100))
    layers = page.get_by_role("group", name="Layers").get_by_role("button")
    told = [layers.nth(i).get_attribute("aria-label") or "" for i in range(layers.count())]
    assert sum(int(re.findall(r": (\d+) of", label)[0]) for label in told) == count
    page.get_by_label("norm", exact=True).check()  # a choice has the focus, which is no typing
    page.keyboard.press("Escape")
    expect(selected(page)).to_have_count(0)
    page.wait_for_function(f"({GREY})() === 0")
    expect(rows).to_have_count(100)
    lasso(page, right=0.5)
    expect(selected(page)).to_be_visible()
    area = page.locator("#unit-map .nsewdrag").first.bounding_box()
    assert area
    page.mouse.dblclick(area["x"] + 4, area["y"] + 4)
    expect(selected(page)).to_have_count(0)
    page.wait_for_function(f"({GREY})() === 0")


def test_zoom_stays_whatever_is_selected(opened: Opened) -> None:
    page = opened()
    expect(page.get_by_text(re.compile("bricks shown"))).to_be_visible()  # by then the points are where they stay
    span = (
        "() => document.querySelector('#unit-map .js-plotly-plot').layout.xaxis.range.map((x) => x.toFixed(6)).join()"
    )
    whole = page.evaluate(span)
    page.locator("#unit-map .modebar-btn[data-val='zoom']").click()
    area = page.locator("#unit-map .nsewdrag").first.bounding_box()
    assert area
    page.mouse.move(area["x"] + area["width"] * 0.2, area["y"] + area["height"] * 0.2)
    page.mouse.down()
    page.mouse.move(area["x"] + area["width"] * 0.6, area["y"] + area["height"] * 0.6, steps=6)
    page.mouse.up()
    page.wait_for_function(f"({span})() !== {whole!r}")
    zoomed = page.evaluate(span)
    page.get_by_role("table", name="Bricks").get_by_role("row").nth(1).click()
    expect(selected(page)).to_be_visible()
    page.wait_for_function(f"({GREY})() > 0")
    assert page.evaluate(span) == zoomed
    page.get_by_label("cluster", exact=True).check()
    expect(page.locator("#unit-map .legend")).to_have_count(0)
    assert page.evaluate(span) == zoomed


def test_a_row_shows_details_and_the_map_its_place(opened: Opened) -> None:
    page = opened()
    row = page.get_by_role("table", name="Bricks").get_by_role("row").nth(3)
    module = row.get_by_role("button").inner_text()
    row.click()
    expect(selected(page)).to_have_text("1 brick selected")
    details = page.get_by_role("region", name=re.compile(r"^Brick \d+ of "))
    expect(details).to_contain_text(module)
    expect(details).to_contain_text("share of the adapter")
    total = page.locator("#unit-map .point").count()
    page.wait_for_function(f"({GREY})() > 0")
    nearest = page.get_by_role("table", name="Nearest bricks").get_by_role("row")
    expect(nearest).to_have_count(6)
    page.get_by_role("button", name="Pin this brick").click()
    expect(page.get_by_role("region", name=re.compile(r"^Pinned \d+ of "))).to_be_visible()
    nearest.nth(1).get_by_role("button").press("Enter")
    expect(page.get_by_role("region", name=re.compile(r"^(Brick|Pinned) \d+ of "))).to_have_count(2)
    assert total <= page.locator("#unit-map .point").count()


def test_a_bar_and_a_layer_select_too(opened: Opened) -> None:
    page = opened()
    page.wait_for_function("document.querySelector('#clusters .js-plotly-plot')?.dataset.wired")
    press(page, page.locator("#clusters .bars .point").first)
    expect(selected(page)).to_be_visible()
    page.get_by_role("button", name=re.compile(r"^layer 3: 0 of|^layer 3: \d+ of")).click()
    expect(page.get_by_role("button", name=re.compile(r"^layer 3: (\d+) of \1 bricks selected"))).to_be_visible()
    cells = page.get_by_role("table", name="Bricks").locator("tbody tr")
    expect(cells.first).to_contain_text("layers.3.")


def test_a_muted_cluster_joins_the_comparison(opened: Opened) -> None:
    page = opened()
    page.get_by_label("Layer", exact=True).click()
    page.get_by_role("option", name="layer 3", exact=True).click()
    expect(page.get_by_text("one module")).to_be_visible()
    page.get_by_label("View", exact=True).click()
    page.get_by_role("option", name="Clusters × adapters", exact=True).click()
    expect(page.get_by_role("heading", name="Clusters × adapters")).to_be_visible()
    page.wait_for_function("document.querySelector('#clusters .js-plotly-plot')?.dataset.wired")
    press(page, page.locator("#clusters .heatmap-label text").first)
    expect(selected(page)).to_be_visible()
    mute = page.get_by_role("button", name="Mute the selected bricks")
    expect(mute).to_be_in_viewport(ratio=1)
    mute.click()
    expect(page.get_by_role("group", name="Picked")).to_contain_text("Sum without")
    expect(page.get_by_text(TRIED)).to_be_visible(timeout=240_000)
    for name in ("Exact sum", re.compile("^Sum without")):
        expect(page.get_by_role("region", name=name).locator(".by-text").first).not_to_be_empty()
    tab(page, "Compare")
    box = page.get_by_role("checkbox", name=re.compile("Sum without"))
    expect(box).to_be_checked()


def test_a_kept_selection_comes_back_and_its_edit_becomes_an_adapter(opened: Opened) -> None:
    page = opened()
    lasso(page, right=0.4)
    told = selected(page).inner_text()
    page.get_by_label("Name of the selection").fill("left")
    page.get_by_role("button", name="Keep the selection").click()
    expect(page.get_by_label("Name of the selection")).to_have_value("")
    page.get_by_role("button", name="Play only them").focus()  # not a box, where Escape is typing
    page.keyboard.press("Escape")
    expect(selected(page)).to_have_count(0)
    page.get_by_label("Kept selections").click()
    page.get_by_role("option", name="left", exact=True).click()
    expect(selected(page)).to_have_text(told)
    for press_it, name in (("Play only them", "Sum, only “left”"), ("Scale them", "Sum with “left” × 0.5")):
        page.get_by_role("button", name=press_it).click()
        expect(page.get_by_role("group", name="Picked")).to_contain_text(name)
        expect(page.get_by_role("region", name=name)).to_be_visible()
    page.get_by_role("button", name="Save as an adapter").click()
    expect(page.get_by_text("is an adapter now")).to_be_visible()
    tab(page, "Merge")
    expect(page.get_by_role("heading", name="Sum with “left” × 0.5")).to_be_visible()


def test_a_lasso_catches_what_it_is_drawn_around_after_the_window_was_narrow(opened: Opened) -> None:
    page = opened()
    for width in (390, 1440):  # the legend takes three lines, then one
        page.set_viewport_size({"width": width, "height": 1000})
        legend, plot = page.locator("#unit-map .legend"), page.locator("#unit-map .nsewdrag").first
        expect(legend.locator(".traces")).to_have_count(3)
        page.wait_for_function(
            "() => document.querySelector('#unit-map .js-plotly-plot')._fullLayout.width < innerWidth"
        )
        page.wait_for_timeout(500)
        above, below = legend.bounding_box(), plot.bounding_box()
        assert above
        assert below
        assert above["y"] + above["height"] <= below["y"] + 4
    lasso(page, right=0.5)
    expect(selected(page)).to_be_visible()


def test_each_cluster_is_muted_in_turn_and_that_can_be_stopped(opened: Opened) -> None:
    page = opened()
    page.get_by_role("button", name="What does each cluster do?").click()
    run = page.get_by_role("button", name="Mute each cluster in turn")
    run.click()
    expect(page.get_by_text(re.compile(r"[1-9]\d* of \d{3} clusters, about \d+ s left"))).to_be_visible(timeout=240_000)
    page.get_by_role("button", name="Stop muting").click()
    expect(page.get_by_text("Stopped.")).to_be_visible()
    expect(run).to_be_enabled()
    rows = page.get_by_role("table", name="What each cluster does").locator("tbody tr")
    expect(rows.first).to_contain_text("cluster")
    page.get_by_label("Layer", exact=True).click()
    page.get_by_role("option", name="layer 3", exact=True).click()
    expect(page.get_by_text("one module")).to_be_visible()
    run.click()
    expect(page.get_by_text(re.compile(r"^\d+ clusters muted in turn in"))).to_be_visible(timeout=240_000)
    moved = [float(row.locator("td").last.inner_text()) for row in rows.all()]
    assert moved == sorted(moved, reverse=True)
    rows.first.click()
    expect(selected(page)).to_have_text(re.compile(f"^{rows.first.locator('td').nth(1).inner_text()} bricks? selected"))
