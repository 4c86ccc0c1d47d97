"""Loading bases from folders and the hub on loopback."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from safetensors.torch import save_file
from torch import nn

from backends import bases
from backends.base import loading
from backends.bases import BUILTIN, BaseError, load_base, module_shapes, normalise
from mole.gate import GateConfig, Gates
from mole.sites import Site
from tests.hub import COMMIT, Fault, Hub
from tests.tiny import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("apart")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "models" / "tiny"
    tiny_model().save_pretrained(place)
    tiny_tokenizer().save_pretrained(place)
    return place


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([[1, 2, 3]])).logits


def test_a_folder_is_loaded_once_and_frozen(folder: Path) -> None:
    told: list[tuple[str, float | None]] = []
    base = load_base(str(folder), lambda text, fraction: told.append((text, fraction)))
    assert torch.allclose(logits(base.model), logits(tiny_model()))
    assert not base.model.training
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert load_base(f"{folder}/") is base
    assert (base.info.source, base.info.title, base.info.ready) == ("folder", "tiny", True)
    assert told[-1] == ("Ready", 1.0)
    assert base.has_chat_template
    assert base.info in bases.catalogue()


def test_many_threads_load_it_once(folder: Path) -> None:
    found: list[bases.TextBase] = []
    threads = [threading.Thread(target=lambda: found.append(load_base(str(folder)))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(base) for base in found}) == 1


def test_two_loads_at_once_leave_pytorch_as_it_was() -> None:
    """accelerate's ``init_empty_weights``, which loads use, puts back what it found: of two at once, what the other had set."""
    own = nn.Module.register_parameter
    entered, joined, ended = threading.Event(), threading.Event(), threading.Event()

    def first() -> None:
        with loading("first"), init_empty_weights():
            entered.set()
            joined.wait(0.5)  # in vain where the other waits for its turn
        ended.set()

    def other() -> None:
        entered.wait()
        with loading("second"), init_empty_weights():
            joined.set()
            ended.wait(5)

    threads = threading.Thread(target=first), threading.Thread(target=other)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert nn.Module.register_parameter is own
    assert nn.Linear(1, 1).weight.device.type == "cpu"


def test_gates_made_while_a_base_is_loaded_have_their_values() -> None:
    entered = threading.Event()

    def load() -> None:
        with loading("first"), init_empty_weights():
            entered.set()
            time.sleep(0.3)

    thread = threading.Thread(target=load)
    thread.start()
    entered.wait()
    gates = Gates(GateConfig(), ("a", "b"), (Site("", ("m",), ("m",)),), [3])
    thread.join()
    assert {parameter.device.type for parameter in gates.parameters()} == {"cpu"}


def test_warming_up_loads_in_the_background(folder: Path) -> None:
    thread = bases.warm(str(folder))
    thread.join()
    assert str(folder) in bases._loaded


def test_warming_up_what_is_missing_prints_the_reason(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bases.warm(str(tmp_path / "nothing")).join()
    assert "is not a folder" in capfd.readouterr().err


def test_only_the_latest_bases_are_kept(folder: Path, tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).symlink_to(folder)
        place = tmp_path / f"copy-{name}"
        place.mkdir()
        for file in folder.iterdir():
            (place / file.name).write_bytes(file.read_bytes())
        load_base(str(place))
    assert [Path(name).name for name in bases._loaded] == ["copy-b", "copy-c"]


def test_the_fingerprint_is_of_the_weights(folder: Path, tmp_path: Path) -> None:
    first = load_base(str(folder)).fingerprint
    other = tmp_path / "other"
    tiny_model(seed=1).save_pretrained(other)
    tiny_tokenizer().save_pretrained(other)
    assert load_base(str(other)).fingerprint != first
    assert len(first) == 64


def test_the_fingerprint_does_not_tell_which_release_wrote_the_config(folder: Path, tmp_path: Path) -> None:
    first, other = load_base(str(folder)).fingerprint, shutil.copytree(folder, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "transformers_version": "5.0.0"}))
    assert load_base(str(other)).fingerprint == first
    (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    bases._loaded.clear()
    assert load_base(str(other)).fingerprint != first


def test_shapes_of_the_linear_layers(folder: Path) -> None:
    wanted = {f"model.layers.{layer}.self_attn.{kind}": (24, 24) for layer in (0, 1) for kind in ("q_proj", "o_proj")}
    wanted |= {f"model.layers.{layer}.self_attn.{kind}": (24, 12) for layer in (0, 1) for kind in ("k_proj", "v_proj")}
    wanted |= {f"model.layers.{layer}.mlp.{kind}": (24, 40) for layer in (0, 1) for kind in ("gate_proj", "up_proj")}
    wanted |= {f"model.layers.{layer}.mlp.down_proj": (40, 24) for layer in (0, 1)} | {"lm_head": (24, 69)}
    assert module_shapes(str(folder)) == wanted
    assert module_shapes(load_base(str(folder))) == wanted


def test_shapes_of_the_built_in_base_need_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRICKYARD_HOME", str(tmp_path))
    shapes = module_shapes(BUILTIN)
    assert len(shapes) == 30 * 7 + 1
    assert shapes["model.layers.29.mlp.down_proj"] == (1536, 576)
    assert shapes["model.layers.0.self_attn.k_proj"] == (576, 192)


def drop(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).unlink()


def change_config(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


SPOILED = [
    (pickle_only, "holds its weights only as pickles, which can run code and are never loaded"),
    (lambda folder: drop(folder, "model.safetensors"), "has no model.safetensors"),
    (lambda folder: drop(folder, "config.json"), "has no config.json"),
    (lambda folder: change_config(folder, model_type="t5"), "is a model of type 't5', not a causal language model"),
    (
        lambda folder: change_config(folder, model_type="mine", auto_map={"AutoModelForCausalLM": "mine.Model"}),
        "needs program code",
    ),
]


@pytest.mark.parametrize(("spoil", "told"), SPOILED)
def test_folders_that_cannot_be_loaded_are_refused_with_the_reason(folder: Path, spoil: object, told: str) -> None:
    spoil(folder)  # type: ignore[operator]
    with pytest.raises(BaseError, match=told):
        load_base(str(folder))


def test_damaged_weights_are_told_in_one_line(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 1000)
    with pytest.raises(BaseError) as caught:
        load_base(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("spoil", "told"), SPOILED)
def test_repositories_that_cannot_be_loaded_are_refused_before_the_weights_are_fetched(
    remote: Hub, folder: Path, spoil: object, told: str
) -> None:
    spoil(folder)  # type: ignore[operator]
    remote.repos["some/model"] = folder
    with pytest.raises(BaseError, match=told):
        load_base("some/model")
    assert remote.bytes_of("model.safetensors") == remote.bytes_of("pytorch_model.bin") == 0


def test_a_base_comes_from_the_hub_with_progress(remote: Hub, folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"never loaded")
    (folder / "modeling_mine.py").write_text("raise SystemExit")
    remote.repos["some/model"] = folder
    told: list[tuple[str, float | None]] = []
    base = load_base("some/model", lambda text, fraction: told.append((text, fraction)))
    assert torch.allclose(logits(base.model), logits(tiny_model()))
    assert (base.info.source, base.info.id, base.commit) == ("hub", "some/model", COMMIT)
    assert any(text.startswith("Downloading some/model") and fraction for text, fraction in told)
    assert remote.bytes_of("pytorch_model.bin") == remote.bytes_of("modeling_mine.py") == 0


def test_a_download_is_stopped_by_who_is_told_of_it(remote: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 64 * 1024)  # of 10 MB usually
    save_file({"model.embed_tokens.weight": torch.zeros(64, 8192)}, folder / "model.safetensors")  # 2 MB
    remote.repos["some/model"] = folder
    remote.faults = [Fault("/model.safetensors", drip=0.05, times=99)]
    size = (folder / "model.safetensors").stat().st_size

    def stop(text: str, fraction: float | None) -> None:
        if fraction and remote.bytes_of("model.safetensors") > size / 4:
            raise BaseError("was stopped")

    with pytest.raises(BaseError, match="was stopped"):
        load_base("some/model", stop)
    assert remote.bytes_of("model.safetensors") < size


def test_what_was_downloaded_needs_no_network(remote: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remote.repos["some/model"] = folder
    load_base("some/model")
    bases._loaded.clear()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert load_base("some/model").commit == COMMIT


def test_an_adapter_is_not_taken_for_a_base(remote: Hub, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    remote.repos["some/lora"] = tmp_path
    with pytest.raises(BaseError, match="It is an adapter: add it to the library instead"):
        load_base("some/lora")


def test_errors_of_the_hub_are_base_errors(remote: Hub) -> None:
    with pytest.raises(BaseError, match="some/model: does not exist on the hub, or is private"):
        load_base("some/model")


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (" smollm2-135m-instruct ", BUILTIN),
        ("owner/name", "owner/name"),
        ("https://huggingface.co/owner/name", "owner/name"),
        ("https://huggingface.co/owner/name/tree/v2", "owner/name@v2"),
        ("owner/name@v2", "owner/name@v2"),
    ],
)
def test_ids_have_one_form(given: str, wanted: str) -> None:
    assert normalise(given) == wanted


@pytest.mark.parametrize("given", ["", "/no/such/folder", "no-owner", "a/b/c"])
def test_what_is_no_base_is_refused(given: str) -> None:
    with pytest.raises(BaseError):
        load_base(given)


def test_the_package_is_light_to_import() -> None:
    heavy = ("transformers", "peft", "gradio", "huggingface_hub")
    code = (
        f"import sys, backends.bases, backends.library, backends.text; print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[3], check=True
    )
    assert done.stdout.strip() == "[]"
