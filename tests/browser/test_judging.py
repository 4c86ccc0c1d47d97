"""Judging in a browser: axes with their labels, a blind vote revealed and exported, a session opened elsewhere, undo, the report."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path

import yaml
from playwright.sync_api import Browser, Page, expect

from components.compare import votes
from tests.browser.test_main_job import tab
from tests.browser.test_pictures import download, drop

Opened = Callable[..., Page]
ADDRESSES = """
window.addresses = [];
const replace = history.replaceState.bind(history);
history.replaceState = (state, unused, address) => { window.addresses.push(String(address)); replace(state, unused, address); };
"""
PROMPT = "What is the past tense of 'carry'? Answer with one word."


def short(page: Page, prompt: str = PROMPT) -> None:
    """One prompt, few tokens."""
    tab(page, "Compare")
    page.get_by_label("Prompts").fill(prompt)
    page.get_by_role("spinbutton", name=re.compile("Length")).fill("6")
    page.keyboard.press("Tab")


def compare(page: Page, done: str) -> None:
    """Run, and wait for the end."""
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.get_by_text(re.compile(done))).to_be_visible(timeout=240_000)


def test_one_axis_against_another(opened: Opened) -> None:
    page = opened()
    short(page)
    page.get_by_role("radio", name="Any two axes").check()
    page.get_by_label("Values of the columns").fill("0..1 | 0")
    expect(page.get_by_text("axis Weight of all: the range")).to_be_visible()
    page.get_by_label("Values of the columns").fill("0..1 | 0.5")
    expect(page.get_by_text(re.compile(r"3 texts \(3 columns × 1 prompt\), about"))).to_be_visible()
    page.get_by_label("Rows show").click()
    page.get_by_role("option", name="Temperature", exact=True).click()
    page.get_by_label("Values of the rows").fill("0, 1")
    expect(page.get_by_text(re.compile(r"6 texts \(6 columns × 1 prompt\), about"))).to_be_visible()
    compare(page, "6 columns × 1 prompt in")
    rows = [page.get_by_role("heading", name=f"Temperature {heat}", exact=True) for heat in (0, 1)]
    for row in rows:
        expect(row).to_be_visible()
    columns = page.get_by_role("region", name=re.compile("Weight of all"))
    labels = [label.split("\n")[0].strip() for label in columns.all_inner_texts()]
    assert labels == [f"Weight of all {weight}" for weight in ("0", "0.5", "1")] * 2
    # At weight 0 the merge is the base: what it writes greedily is what the base writes.
    unweighted = columns.first.locator(".by-text").inner_text()
    page.get_by_role("radio", name="Side by side").check()
    compare(page, r"\d variants × 1 prompt in")
    assert page.get_by_role("region", name="Base").locator(".by-text").inner_text() == unweighted


def test_a_blind_vote_is_revealed_counted_and_exported(opened: Opened, tmp_path: Path) -> None:
    page = opened(accept_downloads=True)
    short(page)
    page.get_by_label("Judge blind").check()
    page.get_by_role("button", name="Compare", exact=True).click()
    sides = [page.get_by_role("region", name=side, exact=True) for side in ("Left", "Right")]
    expect(page.get_by_role("button", name="Left is better")).to_be_enabled(timeout=240_000)
    for side in sides:
        expect(side.locator("header")).to_have_text(re.compile("^(Left|Right)$"))
    expect(page.get_by_role("region", name="Base")).to_have_count(0)
    page.get_by_role("button", name="Left is better").click()
    following = page.get_by_role("button", name="Next pair")
    expect(following).to_be_enabled()
    named = [side.locator("header").inner_text() for side in sides]
    assert named[0].startswith("Left: ")
    assert named[0].endswith("✓")
    following.click()
    expect(page.get_by_role("button", name="Tie")).to_be_enabled()
    expect(sides[0].locator("header")).to_have_text("Left")
    page.get_by_role("button", name="Tie").click()
    expect(page.get_by_text("2 votes.")).to_be_visible()
    with (saved := download(page, "Votes (CSV)", tmp_path / "votes.csv")).open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["choice"] for row in rows] == ["left", "tie"]
    assert rows[0]["winner"] == rows[0]["left"] == named[0].removeprefix("Left: ").removesuffix(" ✓")
    assert named[1] == f"Right: {rows[0]['right']}"
    assert saved.read_text(encoding="utf-8") == votes.to_csv(
        [votes.Vote(r["prompt"], int(r["seed"]), r["left"], r["right"], r["choice"]) for r in rows]  # type: ignore[arg-type]
    )
    table = page.get_by_role("table", name="Votes").locator("tbody tr")
    assert {row.split("\t")[0] for row in table.all_inner_texts()} == {
        r[side] for r in rows for side in ("left", "right")
    }
    expect(page.get_by_text(re.compile(r"\d variants × 1 prompt in"))).to_be_visible(timeout=240_000)
    page.get_by_role("button", name="Reveal all").click()
    expect(page.get_by_role("region", name="Base")).to_be_visible()


def test_an_address_opens_the_same_session_elsewhere(opened: Opened, browser: Browser, tmp_path: Path) -> None:
    page = opened(accept_downloads=True, permissions=["clipboard-read", "clipboard-write"])
    tab(page, "Library")
    weight = page.get_by_role("spinbutton", name=re.compile("^Weight of ")).first
    weight.fill("0.5")
    weight.press("Tab")
    expect(page.get_by_role("group", name="Picked")).to_contain_text("0.5")
    short(page)
    compare(page, r"\d variants × 1 prompt in")
    texts = page.locator(".by-columns .by-text").all_inner_texts()
    page.get_by_role("button", name="Copy link").click()
    expect(page.get_by_text("The address is copied")).to_be_visible()
    address = page.evaluate("navigator.clipboard.readText()")
    assert len(address) < 4000
    picked = page.get_by_role("group", name="Picked").inner_text()

    other = opened(address, script=ADDRESSES)
    expect(other.get_by_text(re.compile(r"\d variants × 1 prompt in"))).to_be_visible(timeout=240_000)
    assert other.get_by_label("Prompts").input_value() == PROMPT
    assert other.locator(".by-columns .by-text").all_inner_texts() == texts
    assert other.get_by_role("group", name="Picked").inner_text() == picked
    expect(other).to_have_url(re.compile("#session="))
    assert other.evaluate("[...new Set(window.addresses)]") == [f"#{other.url.split('#')[1]}"], "no other in between"

    already = browser.new_context().new_page()  # unwatched: what was on its way when it opens anew is broken off
    already.goto(address.split("#")[0])
    expect(already.get_by_role("group", name="Picked")).to_contain_text("LoRA-LEGO")
    late = "(hash) => { location.hash = hash; history.replaceState(history.state, '', '#session=its own'); }"
    already.evaluate(late, address.split("#")[1])  # as where the page writes its own address at that moment
    expect(already.get_by_role("group", name="Picked")).to_contain_text("0.5")
    already.context.close()

    page.get_by_role("button", name="Make a report").click()
    report = download(page, "Report (HTML)", tmp_path / "report.html")
    assert report.stat().st_size < 6_000_000
    alone = browser.new_context(offline=True).new_page()
    asked: list[str] = []
    alone.on("request", lambda request: asked.append(request.url))
    alone.goto(report.as_uri())
    for part in ("Map", "Fidelity", "Comparison", "Recipe"):
        expect(alone.get_by_role("region", name=part, exact=True)).to_be_visible()
    assert alone.get_by_role("region", name="Comparison").locator(".by-text").all_inner_texts() == texts
    assert alone.get_by_role("img", name=re.compile("Units of")).bounding_box()
    assert asked == [report.as_uri()]
    alone.context.close()


def test_a_saved_session_is_dropped_back_and_what_is_missing_is_named(opened: Opened, tmp_path: Path) -> None:
    page = opened(accept_downloads=True)
    tab(page, "Library")
    page.get_by_role("checkbox", checked=True).first.click()
    expect(page.get_by_role("checkbox", checked=True)).to_have_count(2)
    expect(page.get_by_role("group", name="Picked")).not_to_contain_text("Language of a phrase")
    picked = page.get_by_role("group", name="Picked").inner_text()
    short(page)
    page.get_by_role("button", name="Save session").click()
    saved = download(page, "session.yaml", tmp_path / "session.yaml")
    text = saved.read_text(encoding="utf-8")
    other = opened()
    adapter = next(each for each in yaml.safe_load(text)["adapters"] if not each.get("merge"))
    lost = tmp_path / "lost.yaml"
    lost.write_text(text.replace(adapter["key"], "f" * len(adapter["key"])), encoding="utf-8")
    drop(other, lost)
    expect(other.get_by_text(f"needs what is not here: {adapter['name']}").first).to_be_visible()
    drop(other, saved)
    expect(other.get_by_text(re.compile(r"\d variants × 1 prompt in"))).to_be_visible(timeout=240_000)
    assert other.get_by_label("Prompts").input_value() == PROMPT
    assert other.get_by_role("group", name="Picked").inner_text() == picked


def test_changes_are_undone_and_made_again(opened: Opened) -> None:
    page = opened()
    undo, redo = (page.get_by_role("button", name=name, exact=True) for name in ("Undo", "Redo"))
    expect(undo).to_be_disabled()
    tab(page, "Library")
    cards = page.get_by_role("checkbox", checked=True)
    expect(cards).to_have_count(3)
    cards.first.click()
    expect(cards).to_have_count(2)
    expect(undo).to_be_enabled()
    undo.click()
    expect(cards).to_have_count(3)
    expect(undo).to_be_disabled()
    page.keyboard.press("Control+Shift+Z")
    expect(cards).to_have_count(2)
    expect(redo).to_be_disabled()
    page.keyboard.press("Control+z")
    expect(cards).to_have_count(3)
    expect(redo).to_be_enabled()

    # What is compared and how is undone too; inside a text the keys are the browser's.
    tab(page, "Compare")
    length, box = page.get_by_label("number input for Length"), page.get_by_label("Prompts")
    length.fill("64")
    length.press("Tab")
    expect(redo).to_be_disabled()
    undo.click()
    expect(length).to_have_value("32")
    expect(redo).to_be_enabled()
    page.keyboard.press("Control+Shift+Z")
    expect(length).to_have_value("64")
    box.fill("typed")
    box.press("Control+z")
    expect(length).to_have_value("64")
    tab(page, "Library")
    expect(cards).to_have_count(3)
