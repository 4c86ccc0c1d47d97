"""Every tab against the rules of WCAG 2.2 A and AA, as axe checks them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

from tests.browser.test_main_job import tab
from tests.browser.test_page import TABS

RULES = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]}}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(opened: Callable[..., Page], scheme: str) -> None:
    page = opened(color_scheme=scheme)
    found = []
    for name in TABS:
        tab(page, name)
        for broken in Axe().run(page, options=RULES).response["violations"]:
            found += [f"{name}: {broken['id']}: {node['html'][:200]}" for node in broken["nodes"]]
    assert not found, "\n".join(found)
