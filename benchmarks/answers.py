"""``python -m benchmarks.answers``: how soon the page answers, in Chromium, from what the hand does to the frame that the eye sees.

Claims, the app beside the browser on the same machine, no graphics card:

- a lasso around half of 5,040 units is answered within half a second: map, table, layers and details have followed;
- another number of clusters is drawn within 300 ms: map, bars beside it and table, at 5,040 units coloured by cluster;
- a third of the built-in units muted: within 2 seconds the first word without them is there;
- 20,160 units are dragged smoothly: half of the frames come within 50 ms.

Needs what ``make browser`` needs.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from statistics import median

from playwright.sync_api import BrowserContext, Page, expect, sync_playwright

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
FEW, MANY = 84, 336
"""Ranks of two adapters on the built-in base's q_proj: 5,040 and 20,160 units."""

SETTLED = 1500
"""Milliseconds after which nothing of an answer is left to do."""
WATCH = """(seen) => {
  const holds = new Function(`return ${seen}`);
  window.seen = new Promise((done) => {
    const look = () => holds() && (stop(), requestAnimationFrame(() => done(performance.now())));
    const observer = new MutationObserver(look);
    const stop = () => { observer.disconnect(); document.removeEventListener('drawn', look); };
    observer.observe(document.body, {childList: true, subtree: true, characterData: true, attributes: true});
    document.addEventListener('drawn', look);
  });
  const began = () => { window.began = performance.now(); };
  for (const name of ['mouseup', 'click']) addEventListener(name, began, {capture: true, once: true});
}"""
SELECTED = (
    "[...document.querySelectorAll('#map-page .by-h')].some((title) => title.textContent.includes('bricks selected'))"
)
CLUSTERED = "document.querySelector('#unit-map .js-plotly-plot')._fullData[0].marker.cmax === {k} - 0.5"
TOLD = "document.querySelector('#map-page .by-said').textContent.includes(' {k} clusters')"
WRITTEN = "[...document.querySelectorAll('#map-page .by-column')].at(-1)?.querySelector('.by-text')?.textContent.trim()"
SLIDE = """(k) => {
  const slider = document.querySelector('#map-k input[type=range]');
  slider.value = k;
  window.began = performance.now();
  for (const name of ['input', 'change', 'pointerup']) slider.dispatchEvent(new Event(name, {bubbles: true}));
}"""
FRAMES = """() => {
  window.frames = [];
  window.dragging = true;
  let last = performance.now();
  const next = (now) => { window.frames.push(now - last); last = now; window.dragging && requestAnimationFrame(next); };
  requestAnimationFrame(next);
}"""


def seconds(page: Page) -> float:
    """From what the hand did to the frame that shows what was watched for."""
    taken = page.evaluate("async () => (await window.seen - window.began) / 1000")
    page.wait_for_timeout(SETTLED)
    return taken


def opened(context: BrowserContext, url: str) -> Page:
    """The page once its map is drawn and its base is there."""
    page = context.new_page()
    page.goto(url)
    page.get_by_role("group", name="Picked").get_by_text("LoRA-LEGO").wait_for()
    page.locator("#unit-map .point").first.wait_for()
    page.get_by_role("status", name="Base model state").get_by_text("ready").wait_for()
    return page


def with_units(context: BrowserContext, url: str, folder: Path, rank: int) -> Page:
    """The page with two adapters of this rank picked, and their map coloured by cluster."""
    page = opened(context, url)
    tab(page, "Library")
    for card in page.get_by_role("checkbox", checked=True).all()[::-1]:
        card.click()
    expect(page.get_by_role("checkbox", checked=True)).to_have_count(0)
    page.get_by_role("button", name="Add adapters").click()
    place = page.get_by_label("Local folder")
    expect(place).to_be_visible()
    named = "model.layers.{}.self_attn.q_proj"
    for number, adapter in enumerate(adapters(SOURCES, rank, LAYERS, WIDTH, own=0.7, names=named)):
        place.fill(str(write_adapter(adapter, folder / f"{rank}-{number}")))
        page.get_by_role("button", name="Add the folder").click()
        expect(page.get_by_role("checkbox", checked=True)).to_have_count(number + 1)
    tab(page, "Map")
    expect(page.get_by_text(f"of {rank * SOURCES * LAYERS} bricks shown")).to_be_visible()
    page.get_by_label("cluster", exact=True).check()
    page.wait_for_timeout(2 * SETTLED)
    return page


def lassoed(page: Page) -> float:
    """Half of the map is caught."""
    page.evaluate(WATCH, SELECTED)
    lasso(page, right=0.5)
    taken = seconds(page)
    clear(page)
    return taken


def clear(page: Page) -> None:
    """Nothing is selected any more."""
    page.keyboard.press("Escape")
    expect(selected(page)).to_have_count(0)
    page.wait_for_timeout(SETTLED)


def slid(page: Page, k: int) -> float:
    """Another number of clusters, by the slider."""
    page.evaluate(WATCH, f"{CLUSTERED} && {TOLD}".replace("{k}", str(k)))
    page.evaluate(SLIDE, k)
    return seconds(page)


def muted(page: Page, share: float) -> float:
    """A part of the built-in units is muted, until the first word that the sum writes without them."""
    page.evaluate("scrollTo(0, 0)")
    lasso(page, right=share)
    expect(selected(page)).to_be_visible()
    page.wait_for_timeout(SETTLED)
    page.evaluate("() => document.querySelectorAll('#map-page .by-column').forEach((column) => column.remove())")
    page.evaluate(WATCH, WRITTEN)
    page.get_by_role("button", name="Mute the selected bricks").click()
    taken = seconds(page)
    expect(page.get_by_role("button", name="Stop trying")).to_be_hidden()
    clear(page)
    return taken


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


def measure(context: BrowserContext, url: str, folder: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of every round; each kind of page is opened anew."""
    page = with_units(context, url, folder, FEW)
    times = {"lasso": [lassoed(page) for _ in range(rounds)], "slider": [slid(page, 20 + n) for n in range(rounds)]}
    page.close()
    page = opened(context, url)
    times["muted"] = [muted(page, 0.4 + n / 50) for n in range(rounds)]
    page.close()
    page = with_units(context, url, folder, MANY)
    times["frame"] = [dragged(page) for _ in range(rounds)]
    return times


def main() -> int:
    """Measures, prints, and returns 1 where a claim does not hold."""
    parser = parser_for("answers", __doc__)
    parser.add_argument("--rounds", type=int, default=5, help="the median of so many counts")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright:
        folder = Path(scratch)
        browser = playwright.chromium.launch(executable_path=chromium(playwright), args=FLAGS)
        context = browser.new_context(viewport={"width": 1440, "height": 1000})
        context.add_init_script(f"localStorage.setItem({KEPT!r}, 'shown')")
        context.set_default_timeout(180_000)
        with served(fresh_home(folder / "home"), folder / "log", OMP_NUM_THREADS="2", OMP_WAIT_POLICY="PASSIVE") as url:
            times = measure(context, url, folder, chosen.rounds)
        browser.close()
    few, many = (f"{rank * SOURCES * LAYERS:,} units" for rank in (FEW, MANY))
    told = [
        (f"a lasso around half of {few}, until all views have followed", "lasso", LASSO),
        (f"another k, until map, bars and table of {few} show it", "slider", SLIDER),
        ("built-in bricks muted, until the first word without them", "muted", MUTED),
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
