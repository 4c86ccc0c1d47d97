"""``python -m benchmarks.answers``: how soon the page answers, in Chromium, from what the hand does to what the eye sees.

Claims:

- a lasso around half of 5,040 units is answered within half a second: all views have followed;
- another number of clusters is drawn within 300 ms, at 5,040 units coloured by cluster;
- half of the built-in units muted: within 2 seconds the first word that differs is marked;
- 20,160 units are dragged smoothly: half of the frames come within 50 ms, drawn by the processor in place of a graphics card.

Needs what ``make browser`` needs. The app runs beside the browser on the same machine.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from playwright.sync_api import Page, expect, sync_playwright

from benchmarks.maps import adapters
from benchmarks.report import finish, machine, parser_for, table
from components.hints import KEPT
from lego import write_adapter
from tests.browser.conftest import FLAGS, chromium
from tests.browser.test_main_job import tab
from tests.browser.test_selection import lasso, selected
from tests.serving import fresh_home, served

LASSO, SLIDER, MUTED, FRAME = 0.5, 0.3, 2.0, 0.05
"""Seconds at most."""
LAYERS, WIDTH, SOURCES = 30, 576, 2
RANKS = (84, 336)
"""Of two adapters on the built-in base's q_proj: 5,040 and 20,160 units."""
BEGIN = "() => { window.began = performance.now(); }"
SINCE = "(window.began && (%s)) ? (performance.now() - window.began) / 1000 : null"
RELEASED = "addEventListener('mouseup', () => { window.began = performance.now(); }, true)"
FRAMES = """() => {
  window.frames = [];
  let last = performance.now();
  const next = (now) => { window.frames.push(now - last); last = now; window.dragging && requestAnimationFrame(next); };
  window.dragging = true;
  requestAnimationFrame(next);
}"""


def seconds(page: Page, seen: str) -> float:
    """Seconds from the beginning until something is seen: a JavaScript expression."""
    return float(page.wait_for_function(f"() => {SINCE % seen}").json_value())


def opened(page: Page, url: str) -> Page:
    """The page as it opens, once its map has been drawn."""
    page.goto(url)
    page.get_by_role("group", name="Picked").get_by_text("LoRA-LEGO").wait_for()
    page.locator("#unit-map .point").first.wait_for()
    page.evaluate(RELEASED)
    return page


def with_units(page: Page, url: str, folder: Path, rank: int) -> Page:
    """The page with two adapters of this rank picked, and their map."""
    opened(page, url)
    tab(page, "Library")
    for card in page.get_by_role("checkbox", checked=True).all()[::-1]:
        card.click()
    expect(page.get_by_role("checkbox", checked=True)).to_have_count(0)
    page.get_by_role("button", name="Add adapters").click()
    place = page.get_by_label("Local folder")
    expect(place).to_be_visible()
    for number, adapter in enumerate(
        adapters(SOURCES, rank, LAYERS, WIDTH, own=0.7, names="model.layers.{}.self_attn.q_proj")
    ):
        place.fill(str(write_adapter(adapter, folder / f"{rank}-{number}")))
        page.get_by_role("button", name="Add the folder").click()
        expect(page.get_by_role("checkbox", checked=True)).to_have_count(number + 1)
    tab(page, "Map")
    expect(page.get_by_text(f"{rank * SOURCES * LAYERS} of {rank * SOURCES * LAYERS} bricks shown")).to_be_visible()
    return page


def lassoed(page: Page) -> float:
    """Half of the map is caught."""
    lasso(page, right=0.5)
    found = seconds(page, "/[1-9][0-9,]* bricks selected/.test(document.querySelector('#map-page').innerText)")
    page.keyboard.press("Escape")
    expect(selected(page)).to_have_count(0)
    page.wait_for_timeout(1000)
    return found


def slid(page: Page, k: int) -> float:
    """Another number of clusters, by the slider."""
    page.evaluate(
        """(k) => {
          const slider = document.querySelector('#map-k input[type=range]');
          window.before = document.querySelector('#unit-map .js-plotly-plot');
          slider.value = k;
          window.began = performance.now();
          for (const name of ['input', 'change', 'pointerup']) slider.dispatchEvent(new Event(name, {bubbles: true}));
        }""",
        k,
    )
    drawn = "document.querySelector('#unit-map .js-plotly-plot') !== window.before && document.querySelector('#unit-map canvas')"
    found = seconds(page, f"document.querySelector('#map-page').innerText.includes(' {k} clusters') && {drawn}")
    page.wait_for_timeout(1000)
    return found


def muted(page: Page) -> float:
    """Half of the built-in units are muted, and the sum is written without them, until a word is marked."""
    lasso(page, right=0.5)
    expect(selected(page)).to_be_visible()
    page.wait_for_timeout(1000)
    page.get_by_role("button", name="Mute the selected bricks").click()
    found = seconds(page, "document.querySelector('#map-page mark')")
    page.get_by_role("button", name="Stop trying").click()
    page.keyboard.press("Escape")
    expect(selected(page)).to_have_count(0)
    page.wait_for_timeout(1000)
    return found


def dragged(page: Page) -> float:
    """The map is moved about by the mouse: seconds between two frames."""
    page.locator("#unit-map .modebar-btn[data-val='pan']").click()
    box = page.locator("#unit-map .nsewdrag").first.bounding_box()
    assert box
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.evaluate(FRAMES)
    for step in range(60):
        page.mouse.move(x + step, y + step / 2)
    page.mouse.up()
    return median(page.evaluate("() => { window.dragging = false; return window.frames.slice(1); }")) / 1000


def main() -> int:
    """Measures, prints, and returns 1 where a claim does not hold."""
    parser = parser_for("answers", __doc__)
    parser.add_argument("--rounds", type=int, default=5, help="the median of so many counts")
    chosen = parser.parse_args()
    times: dict[str, list[float]] = {"lasso": [], "slider": [], "muted": [], "frame": []}
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright:
        folder = Path(scratch)
        browser = playwright.chromium.launch(executable_path=chromium(playwright), args=FLAGS)
        context: Any = browser.new_context(viewport={"width": 1440, "height": 1000})
        context.add_init_script(f"localStorage.setItem({KEPT!r}, 'shown')")
        context.set_default_timeout(180_000)
        with served(fresh_home(folder / "home"), folder / "log") as url:
            page = with_units(context.new_page(), url, folder, RANKS[0])
            page.get_by_label("cluster", exact=True).check()
            page.wait_for_timeout(3000)
            for number in range(chosen.rounds):
                times["lasso"].append(lassoed(page))
                times["slider"].append(slid(page, 20 + number))
            page.close()
            page = opened(context.new_page(), url)
            page.get_by_role("status", name="Base model state").get_by_text("ready").wait_for()
            times["muted"] = [muted(page) for _ in range(chosen.rounds)]
            page.close()
            page = with_units(context.new_page(), url, folder, RANKS[1])
            page.wait_for_timeout(3000)
            times["frame"] = [dragged(page) for _ in range(chosen.rounds)]
        browser.close()
    few, many = (f"{rank * SOURCES * LAYERS:,} units" for rank in RANKS)
    told = [
        (f"a lasso around half of {few}, until all views have followed", "lasso", LASSO),
        (f"another k, until the map of {few} is coloured by it", "slider", SLIDER),
        ("half of the built-in bricks muted, until a word that differs is marked", "muted", MUTED),
        (f"the map of {many} dragged, a frame", "frame", FRAME),
    ]
    rows = [
        [what, f"{1000 * median(times[name]):.0f} ms", f"{1000 * max(times[name]):.0f} ms", f"{1000 * most:.0f} ms"]
        for what, name, most in told
    ]
    missed = [
        f"{what}: {median(times[name]):.2f} s, not {most}" for what, name, most in told if median(times[name]) > most
    ]
    text = table(["in Chromium, beside the app on the same machine", "median", "slowest", "at most"], rows)
    return finish("answers", f"{text}\n\n{machine()}", missed, chosen.write)


if __name__ == "__main__":
    sys.exit(main())
