"""Adapters of a hub on loopback and uploads, as a visitor adds them; a closed tab takes its uploads along."""

from __future__ import annotations

import re
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from playwright.sync_api import Browser, Page, expect
from safetensors.torch import save_file

from backends.bases import BUILTIN
from backends.builtin import HUB_ID
from tests.browser.conftest import Watch
from tests.browser.test_main_job import tab
from tests.conftest import half_pair, write_peft
from tests.hub import Fault, Hub
from tests.hub import hub as running
from tests.serving import fresh_home, served
from tests.tiny import tiny_model, tiny_tokenizer

MODULE = "model.layers.0.self_attn.q_proj"
TOKEN = "hf_mine"


@pytest.fixture(scope="module")
def remote() -> Iterator[Hub]:
    with running() as found:
        yield found


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fresh_home(tmp_path_factory.mktemp("hub") / "home")


@pytest.fixture(scope="module")
def address(remote: Hub, home: Path) -> Iterator[str]:
    """An app that asks the small hub, and frees what a closed tab held after a second."""
    more = {"HF_ENDPOINT": remote.endpoint, "HF_HUB_CACHE": str(home / "hub"), "BRICKYARD_GRACE": "1"}
    with served(home, home.parent / "log", NO_PROXY="127.0.0.1", no_proxy="127.0.0.1", **more) as url:
        yield url


@pytest.fixture
def page(browser: Browser, address: str, watch: Watch) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1440, "height": 1000})
    found = watch.attach(context.new_page())
    found.goto(address)
    tab(found, "Library")
    found.get_by_role("button", name="Add adapters").click()
    found.wait_for_timeout(2000)  # what is chosen while the section unfolds is lost; nobody is so fast
    yield found
    context.close()


def adapter(folder: Path, seed: int, name: str = "adapter_model.safetensors") -> Path:
    return write_peft(folder, half_pair(MODULE, seed=seed, d_in=576, d_out=576), r=4, base_model_name_or_path=HUB_ID)


def test_an_adapter_is_searched_and_added(page: Page, remote: Hub, tmp_path: Path) -> None:
    remote.repos["some/pirate"] = adapter(tmp_path / "pirate", 1)
    facts = {"lastModified": "2026-05-04T03:02:01.000Z", "gated": False, "private": False}
    listed = [{"id": "some/pirate", "downloads": 1234, "likes": 5, **facts}]
    remote.listed[f"base_model:adapter:{HUB_ID}"] = listed
    page.get_by_role("button", name="Search", exact=True).click()
    expect(page.get_by_role("table", name="Adapters on the hub")).to_contain_text("1,234")
    page.get_by_role("button", name="Add some/pirate").click()
    expect(page.get_by_role("checkbox", name="pirate", checked=True)).to_be_visible()


def test_a_private_adapter_needs_the_token(page: Page, remote: Hub, tmp_path: Path, home: Path) -> None:
    remote.repos["some/secret"], remote.readers["some/secret"] = adapter(tmp_path / "secret", 2), {TOKEN}
    page.get_by_label("Hub id").fill("some/secret")
    page.get_by_role("button", name="Add from the hub").click()
    expect(page.get_by_text("is private")).to_be_visible()
    assert page.get_by_label("Access token").get_attribute("type") == "password"
    page.get_by_label("Access token").fill(TOKEN)
    page.get_by_role("button", name="Add from the hub").click()
    expect(page.get_by_role("checkbox", name="secret", checked=True)).to_be_visible()
    assert TOKEN not in page.url
    assert TOKEN not in (home.parent / "log").read_text()


def test_a_hub_in_trouble_is_a_message(page: Page, remote: Hub) -> None:
    remote.faults = [Fault("/api/models/some/busy", status=429, times=9)]
    page.get_by_label("Hub id").fill("some/busy")
    page.get_by_label("Hub id").press("Enter")
    expect(page.get_by_text("takes no more requests for now")).to_be_visible()


def test_a_download_is_stopped(page: Page, remote: Hub, tmp_path: Path) -> None:
    modules = [f"model.layers.{layer}.self_attn.{name}" for layer in range(30) for name in ("q_proj", "o_proj")]
    pairs = [half_pair(module, 128, 576, 576) for module in modules]  # 35 MB: the client tells every 10
    tensors = {name: tensor for pair in pairs for name, tensor in pair.items()}
    remote.repos["some/large"] = write_peft(tmp_path / "large", tensors, r=128, base_model_name_or_path=HUB_ID)
    size = (tmp_path / "large" / "adapter_model.safetensors").stat().st_size
    remote.faults = [Fault("/adapter_model.safetensors", drip=0.02, times=99)]
    page.get_by_label("Hub id").fill("some/large")
    page.get_by_role("button", name="Add from the hub").click()
    expect(page.get_by_text(re.compile("Downloading some/large, .* left"))).to_be_visible()
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(page.get_by_text("nothing was added")).to_be_visible()
    page.wait_for_timeout(8000)
    come = remote.bytes_of("adapter_model.safetensors")
    page.wait_for_timeout(2000)
    assert remote.bytes_of("adapter_model.safetensors") == come < size
    remote.faults = []
    page.get_by_role("button", name="Add from the hub").click()
    expect(page.get_by_role("checkbox", name="large", checked=True)).to_be_visible()


def test_loading_a_base_is_stopped(page: Page, remote: Hub, tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    save_file({"model.embed_tokens.weight": torch.zeros(64, 2**18)}, tmp_path / "base" / "model.safetensors")  # 67 MB
    remote.repos["some/base"] = tmp_path / "base"
    remote.faults = [Fault("/model.safetensors", drip=0.01, times=99)]
    base = page.get_by_label("Base model", exact=True)
    base.fill("some/base")
    base.press("Enter")
    status = page.get_by_role("status", name="Base model state")
    expect(status).to_contain_text("left")
    status.get_by_role("button", name="Stop").click()
    expect(status).to_contain_text("was stopped")
    expect(page.get_by_role("button", name="Try again")).to_be_visible()
    base.fill(BUILTIN)
    base.press("Enter")
    expect(status).to_contain_text("ready")


def test_a_zip_of_adapters_is_uploaded_and_goes_with_the_tab(page: Page, home: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.zip"
    with zipfile.ZipFile(file, "w") as archive:
        for seed, name in ((3, "one"), (4, "two")):
            for part in adapter(tmp_path / name, seed).iterdir():
                archive.write(part, f"{name}/{part.name}")
    expect(page.get_by_text(re.compile("deleted when you leave"))).to_be_visible()
    page.locator("input[type=file][accept*=safetensors]").first.set_input_files(file)
    expect(page.get_by_role("link", name=re.compile("KB"))).to_be_visible()  # it has arrived
    page.get_by_role("button", name="Add the files").click()
    for name in ("one", "two"):
        expect(page.get_by_role("checkbox", name=name, exact=True)).to_be_visible()
    kept = list((home / "uploads").iterdir())
    assert len(kept) == 2
    page.close()
    for _ in range(300):
        if not list((home / "uploads").iterdir()):
            return

        time.sleep(0.1)
    pytest.fail("the uploads are still there")
