"""UMAP of bricks that none was computed ahead for: shown as PCA meanwhile, stopped, left, waited for."""

from __future__ import annotations

from collections.abc import Callable

from playwright.sync_api import Page, expect

Opened = Callable[..., Page]


def layer(page: Page, name: str) -> None:
    """Look at the bricks of one layer."""
    page.get_by_label("Layer", exact=True).click()
    page.get_by_role("option", name=name, exact=True).click()
    expect(page.get_by_text("one module")).to_be_visible()


def test_umap_is_stopped_left_and_waited_for(opened: Opened) -> None:
    page = opened()
    stop, coming = page.get_by_role("button", name="Stop UMAP"), page.get_by_text("while UMAP is computed")
    umap, pca = page.get_by_label("UMAP", exact=True), page.get_by_label("PCA", exact=True)
    layer(page, "layer 3")
    umap.check()
    expect(coming).to_contain_text("left")
    stop.click()
    expect(pca).to_be_checked()
    expect(stop).to_be_hidden()
    expect(page.get_by_text("one module")).to_be_visible()
    umap.check()
    expect(stop).to_be_visible()
    pca.check()
    expect(stop).to_be_hidden()
    expect(page.get_by_text("one module")).to_be_visible()
    before = axes(page)
    umap.check()
    expect(stop).to_be_visible()
    page.get_by_label("cluster", exact=True).check()  # what is asked for meanwhile is heeded
    expect(page.locator("#unit-map .legend")).to_have_count(0)
    expect(coming).to_have_count(0)
    expect(stop).to_be_hidden()
    expect(umap).to_be_checked()
    page.wait_for_function(
        "(before) => JSON.stringify(document.querySelector('#unit-map .js-plotly-plot')._fullLayout.xaxis.range) !== before",
        arg=before,
    )
    expect(page.locator("#unit-map .legend")).to_have_count(0)


def axes(page: Page) -> str:
    """The range of the map's x axis."""
    return page.evaluate("JSON.stringify(document.querySelector('#unit-map .js-plotly-plot')._fullLayout.xaxis.range)")
