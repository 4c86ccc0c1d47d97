"""The main job in a browser: pick LoRAs, see their units, merge them, compare, download; and the download is what was shown."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from peft import PeftModel
from playwright.sync_api import Page, expect
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = ["What is the past tense of 'carry'? Answer with one word.", "Tell me about a stone wall."]
LENGTH = 16
BASE = "smollm2-135m-instruct"

Opened = Callable[..., Page]


def tab(page: Page, name: str) -> None:
    """Go to a tab."""
    page.get_by_role("tab", name=name, exact=True).click()


def plain_peft(home: Path, adapter: Path) -> list[str]:
    """What plain PEFT and transformers generate, greedily, with the downloaded adapter on the same base."""
    folder = home / "bases" / BASE
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), adapter).eval()
    texts = []
    for prompt in PROMPTS:
        chat = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        with torch.inference_mode():
            out = model.generate(**ids, max_new_tokens=LENGTH, do_sample=False)
        texts.append(tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))
    return texts


def test_from_picking_to_a_downloaded_adapter(opened: Opened, home: Path, tmp_path: Path) -> None:
    page = opened(accept_downloads=True)
    expect(page.get_by_role("status", name="Base model state")).to_contain_text("ready", timeout=120_000)

    # Pick: the map follows.
    points = page.locator("#unit-map .point").count()
    tab(page, "Library")
    card = page.get_by_role("checkbox", name=re.compile("plural", re.I))
    card.click()
    expect(card).to_be_checked()
    weight = page.get_by_role("spinbutton", name=re.compile("^Weight of .*Plural", re.I))
    weight.fill("0.5")
    weight.press("Tab")
    expect(page.get_by_role("group", name="Picked")).to_contain_text("0.5")
    tab(page, "Map")
    expect(page.locator("#unit-map .point")).not_to_have_count(points)

    # Merge.
    tab(page, "Merge")
    page.get_by_label("Strength").first.fill("0.8")
    page.get_by_label("Name", exact=True).fill("my merge")
    page.get_by_role("button", name="Merge", exact=True).click()
    expect(page.get_by_role("heading", name="my merge")).to_be_visible(timeout=120_000)
    expect(page.get_by_role("table", name="Sources").locator("tbody tr")).to_have_count(4)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download adapter (zip)").or_(
            page.get_by_role("link", name="Download adapter (zip)")
        ).first.click()
    assert download.value.suggested_filename == "my-merge.zip"
    download.value.save_as(tmp_path / "merge.zip")

    # Compare.
    tab(page, "Compare")
    page.get_by_label("Prompts").fill("\n".join(PROMPTS))
    page.get_by_role("spinbutton", name=re.compile("Length")).fill(str(LENGTH))
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.get_by_role("button", name="Export JSON")).to_be_enabled(timeout=240_000)
    column = page.get_by_role("region", name="my merge").locator(".by-text")
    shown = [text.strip() for text in column.all_inner_texts()]

    # The download, in plain PEFT.
    with zipfile.ZipFile(tmp_path / "merge.zip") as archive:
        archive.extractall(tmp_path)
    assert (tmp_path / "my-merge" / "recipe.yaml").is_file()
    assert shown == [text.strip() for text in plain_peft(home, tmp_path / "my-merge")]

    # The export holds what was shown.
    with page.expect_download() as download:
        page.get_by_role("button", name="Export JSON").or_(page.get_by_role("link", name="Export JSON")).first.click()
    exported = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
    mine = next(variant for variant in exported["variants"] if variant["name"] == "my merge")
    assert [text.strip() for text in mine["texts"]] == shown
