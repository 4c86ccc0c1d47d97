"""The app is killed and started again: open pages find it, and what was in them is there again."""

from __future__ import annotations

import re
from pathlib import Path

from playwright.sync_api import Browser, expect

from components.hints import KEPT
from tests.browser.test_main_job import tab
from tests.serving import free_port, fresh_home, served


def test_the_page_finds_a_restarted_app_with_its_session(browser: Browser, tmp_path: Path) -> None:
    home, port = fresh_home(tmp_path / "home"), str(free_port())
    context = browser.new_context(viewport={"width": 1440, "height": 1000})
    context.add_init_script(f"localStorage.setItem({KEPT!r}, 'shown')")
    context.set_default_timeout(180_000)
    page = context.new_page()
    strip = page.get_by_role("group", name="Picked")
    with served(home, tmp_path / "first.log", GRADIO_SERVER_PORT=port) as address:
        page.goto(address)
        strip.get_by_text("LoRA-LEGO").wait_for()
        tab(page, "Library")
        page.get_by_role("checkbox", name=re.compile("plural", re.I)).click()
        expect(strip).to_contain_text("Plural")
        weight = page.get_by_role("spinbutton", name=re.compile("^Weight of .*Plural", re.I))
        weight.fill("0.5")
        weight.press("Tab")
        expect(strip).to_contain_text("0.5")
        expect(page).to_have_url(re.compile("#session="))
        page.wait_for_timeout(2000)  # the address follows the last change
        page.evaluate("window.beforeTheRestart = true")
    with served(home, tmp_path / "second.log", GRADIO_SERVER_PORT=port):
        page.wait_for_function("!window.beforeTheRestart")
        expect(strip).to_contain_text("Plural", timeout=180_000)
        expect(strip).to_contain_text("0.5")
        tab(page, "Library")  # and it works
        page.get_by_role("checkbox", name=re.compile("plural", re.I)).click()
        expect(strip).not_to_contain_text("Plural")
    context.close()
