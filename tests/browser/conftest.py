"""One running app for the browser tests, and Chromium to look at it with."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Playwright, expect

from components.hints import KEPT
from tests.serving import fresh_home, served

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--enable-unsafe-swiftshader"]
expect.set_options(timeout=90_000)  # a busy machine is slow, not wrong
NAMES = ("chromium", "chromium-browser", "google-chrome")
CLOSED = ("signal is aborted", "Connection errored out")  # what Gradio's client says when it closes its own stream


def chromium(playwright: Playwright) -> str:
    """The browser: $CHROMIUM, one of the system's, or playwright's own. These tests never pass by not running."""
    own = Path(playwright.chromium.executable_path)
    found = (
        os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None) or (own.is_file() and str(own))
    )
    if not found or not Path(found).is_file():
        pytest.fail(
            "Chromium is missing: install it (apt-get install chromium) or say where it is: CHROMIUM=/path",
            pytrace=False,
        )
    return found


@pytest.fixture(scope="session")
def browser_type_launch_args(browser_type_launch_args: dict[str, Any], playwright: Playwright) -> dict[str, Any]:
    """pytest-playwright's launch options, with this machine's Chromium."""
    return {**browser_type_launch_args, "executable_path": chromium(playwright), "args": FLAGS}


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The app's cache folder."""
    return fresh_home(tmp_path_factory.mktemp("browser") / "home")


@pytest.fixture(scope="session")
def url(home: Path) -> Iterator[str]:
    """The address of the running app."""
    with served(home, home.parent / "log") as address:
        yield address


@dataclass
class Watch:
    """What a page did that it should not: console errors, and requests that leave the machine."""

    errors: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)

    def attach(self, page: Page) -> Page:
        """Watch a page from now on."""
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.errors.append(error.stack or str(error)))
        page.on("request", lambda request: self.request(request.url))
        return page

    def reload(self, page: Page) -> None:
        """Load a page again. What still ran there is broken off by Gradio's client as the page goes: no error."""
        before = len(self.errors)
        page.reload()
        self.errors[before:] = [error for error in self.errors[before:] if not any(told in error for told in CLOSED)]

    def request(self, url: str) -> None:
        """Note a request that does not stay on this machine."""
        if not url.startswith(("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "blob:")):
            self.foreign.append(url)


@pytest.fixture
def watch() -> Iterator[Watch]:
    """Every browser test ends with these checks."""
    watch = Watch()
    yield watch
    assert watch.errors == []
    assert watch.foreign == []


@pytest.fixture
def opened(browser: Browser, url: str, watch: Watch) -> Iterator[Any]:
    """Opens the page in a browser context of its own and waits for the first map."""
    contexts: list[BrowserContext] = []

    def open_page(address: str = url, hints: bool = False, script: str = "", **options: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1440, "height": 1000}, **options})
        contexts.append(context)
        if not hints:
            context.add_init_script(f"localStorage.setItem({KEPT!r}, 'shown')")
        if script:
            context.add_init_script(script)
        context.set_default_timeout(180_000)
        page = watch.attach(context.new_page())
        page.goto(address)
        if address == url:  # others lead to another tab
            page.locator("#unit-map .point").first.wait_for(state="attached" if hints else "visible")
        page.get_by_role("group", name="Picked").get_by_text("LoRA-LEGO").wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
