"""Loading pipelines from folders and the hub on loopback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline

from backends import bases, device, library, pipelines
from backends.bases import IMAGE, BaseError, ImageBase, load_base, module_shapes
from backends.pipelines import files_of, place, weight_files
from lego.recipe import Source
from tests.hub import COMMIT, Hub
from tests.tiny_pipelines import MAKERS, tiny_folder, write_lora

pytestmark = pytest.mark.usefixtures("apart")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("pipelines")
    return {name: tiny_folder(place / name, name) for name in MAKERS}


@pytest.fixture
def folder(saved: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved["sd"], tmp_path / "models" / "sd"))


def index_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "model_index.json").read_text())


def change_index(folder: Path, **fields: object) -> None:
    (folder / "model_index.json").write_text(json.dumps({**index_of(folder), **fields}))


@pytest.mark.parametrize("name", MAKERS)
def test_a_folder_is_loaded_and_named_as_adapters_name_it(saved: dict[str, Path], tmp_path: Path, name: str) -> None:
    base = load_base(str(saved[name]))
    assert isinstance(base, ImageBase)
    assert (base.info.kind, base.info.source, base.info.ready, base.dtype) == ("image", "folder", True, torch.float32)
    assert load_base(f"{saved[name]}/") is base
    assert base.info in bases.catalogue()
    shapes = module_shapes(base)
    bases._loaded.clear()
    assert module_shapes(str(saved[name])) == shapes, "configs alone tell the same"
    entry = library.add_folder(write_lora(tmp_path / "lora", name, 1, "peft"))
    assert library.fits(entry, shapes) is None
    assert not any(parameter.requires_grad for parameter in base.model.parameters())


def test_shapes_tell_convolutions(saved: dict[str, Path]) -> None:
    shapes = module_shapes(str(saved["sd"]))
    assert shapes["unet.conv_in"] == (4 * 9, 4, 3, 3)
    assert shapes["unet.down_blocks.2.resnets.0.conv1"] == (4 * 9, 8, 3, 3)
    assert shapes["unet.down_blocks.0.attentions.0.proj_in"] == (4, 4), "a convolution of 1 × 1 is a matrix"
    assert shapes["unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"] == (8, 4)
    assert shapes["text_encoder.text_model.encoder.layers.1.mlp.fc1"] == (8, 12)
    assert not any(name.startswith("vae") for name in shapes)


def test_adapters_of_other_bases_do_not_fit(saved: dict[str, Path], tmp_path: Path) -> None:
    entry = library.add_folder(write_lora(tmp_path / "lora", "sdxl", 1, "peft"))
    found = str(library.fits(entry, module_shapes(str(saved["sd"]))))
    assert "modules are no linear layers or convolutions of this base, such as text_encoder_2." in found
    shapes = {**module_shapes(str(saved["sdxl"])), "unet.conv_in": (4 * 25, 4, 5, 5)}
    assert library.fits(entry, shapes) == (
        "It was made for another base: unet.conv_in is 4 → 4 (3 × 3) in it but 4 → 4 (5 × 5) here."
    )


def test_a_peft_folder_of_one_part_is_of_the_pipeline(saved: dict[str, Path], tmp_path: Path) -> None:
    """As PEFT's own scripts save a UNet and a text encoder."""
    from peft import LoraConfig, get_peft_model

    pipeline = StableDiffusionPipeline.from_pretrained(saved["sd"])
    shapes = module_shapes(str(saved["sd"]))
    names = {
        "unet": "unet.mid_block.resnets.0.conv1",
        "text_encoder": "text_encoder.text_model.encoder.layers.1.self_attn.q_proj",
    }
    for part, targets in (("unet", ["to_q", "conv1"]), ("text_encoder", ["q_proj"])):
        model = get_peft_model(
            getattr(pipeline, part), LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
        )
        model.save_pretrained(tmp_path / part)
        entry = library.add_folder(tmp_path / part)
        assert library.fits(entry, shapes) is None
        assert all(name.startswith(f"{part}.") for name in library.get(entry.key).modules)
        name = names[part]
        layer = model.base_model.model.get_submodule(name.removeprefix(f"{part}.").removeprefix("text_model."))
        delta = layer.get_delta_weight("default").detach().flatten(1)
        torch.testing.assert_close(library.get(entry.key)[name].delta(), delta)


def pickle_only(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(folder / "unet" / "diffusion_pytorch_model.bin")


def own_unet(folder: Path) -> None:
    (folder / "unet" / "mine.py").write_text("raise SystemExit")
    change_index(folder, unet=["mine", "MyUNet"])


SPOILED: list[tuple[Callable[[Path], None], str]] = [
    (pickle_only, "holds its weights of unet only as pickles, which can run code and are never loaded"),
    (lambda folder: (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink(), "has no safetensors in its vae"),
    (own_unet, r"needs program code from its repository, which is never run \(its unet is MyUNet of mine\)"),
    (lambda folder: change_index(folder, _class_name=["pipeline", "Mine"]), "needs program code from its repository"),
    (
        lambda folder: change_index(folder, _class_name="NoPipeline"),
        "is a 'NoPipeline', which diffusers .* does not have",
    ),
    (lambda folder: change_index(folder, _class_name="DDPMPipeline"), "for which diffusers loads no LoRAs"),
    (
        lambda folder: change_index(folder, _class_name="StableDiffusionInpaintPipeline"),
        "does not draw pictures from text alone",
    ),
    (
        lambda folder: change_index(folder, _class_name="StableDiffusionControlNetPipeline"),
        "does not draw pictures from text alone",
    ),
]


@pytest.mark.parametrize(("spoil", "told"), SPOILED)
def test_what_cannot_be_loaded_is_refused_before_its_weights_are_fetched(
    remote: Hub, folder: Path, spoil: Callable[[Path], None], told: str
) -> None:
    spoil(folder)
    with pytest.raises(BaseError, match=told):
        load_base(str(folder))
    remote.repos["some/pipeline"] = folder
    with pytest.raises(BaseError, match=told):
        load_base("some/pipeline")
    assert not any(path.endswith((".safetensors", ".bin", ".py")) for path in remote.sent)


def test_damaged_weights_are_told_in_one_line(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"\xff" * 1000)
    with pytest.raises(BaseError) as caught:
        load_base(str(folder))
    assert "\n" not in str(caught.value)


def test_a_pipeline_comes_from_the_hub(remote: Hub, saved: dict[str, Path], folder: Path) -> None:
    """What nothing here needs stays there: pickles, a safety checker, another variant, program code."""
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "model.safetensors").write_bytes(b"unused")
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"unused")
    (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"unused")
    (folder / "mine.py").write_text("raise SystemExit")
    change_index(folder, safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    remote.repos["some/pipeline"] = folder
    told: list[tuple[str, float | None]] = []
    shapes = module_shapes("some/pipeline")
    assert not any(path.endswith(".safetensors") for path in remote.sent), "configs suffice for the shapes"
    base = load_base("some/pipeline", lambda text, fraction: told.append((text, fraction)))
    assert isinstance(base, ImageBase)
    assert (base.info.source, base.info.kind, base.commit) == ("hub", "image", COMMIT)
    assert any(text.startswith("Downloading some/pipeline") and fraction for text, fraction in told)
    assert {path.rsplit("/", 1)[1] for path in remote.sent if path.endswith((".safetensors", ".bin", ".py"))} == {
        "diffusion_pytorch_model.safetensors",
        "model.safetensors",
    }
    assert remote.bytes_of("diffusion_pytorch_model.fp16.safetensors") == 0
    assert not any("safety_checker" in path for path in remote.sent)
    assert module_shapes(base) == shapes
    assert base.fingerprint == load_base(str(saved["sd"])).fingerprint


def test_what_was_downloaded_needs_no_network(remote: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remote.repos["some/pipeline"] = folder
    load_base("some/pipeline")
    bases._loaded.clear()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert load_base("some/pipeline").commit == COMMIT


def test_shards_and_the_only_variant_are_loaded(tmp_path: Path, saved: dict[str, Path]) -> None:
    """As the built-in pipeline is stored, and as some repositories hold half precision only."""
    place = tiny_folder(tmp_path / "shards", "sd", max_shard_size="20KB")
    assert len(list((place / "unet").glob("diffusion_pytorch_model-*.safetensors"))) > 1
    half = tiny_folder(tmp_path / "half", "sd", variant="fp16")
    assert not list((half / "unet").glob("diffusion_pytorch_model.safetensors"))
    own = load_base(str(saved["sd"])).model.state_dict()
    for folder in (place, half):
        found = load_base(str(folder)).model.state_dict()
        assert found.keys() == own.keys()
        assert all(torch.equal(found[name], value) for name, value in own.items())


def test_half_precision_is_preferred_where_the_device_computes_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [
        "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.safetensors", "text_encoder/model-00001-of-00002.safetensors",
        "text_encoder/model-00002-of-00002.safetensors", "text_encoder/model.fp16-00001-of-00001.safetensors",
    ]  # fmt: skip
    parts = ["unet", "vae", "text_encoder"]
    full = [names[0], names[2], names[3], names[4]]
    assert weight_files(names, parts, "x") == (full, None)
    monkeypatch.setattr(device, "pick", lambda: (torch.device("cpu"), torch.float16))
    assert weight_files(names, parts, "x") == ([names[1], names[2], names[5]], "fp16")
    old = ["unet/diffusion_pytorch_model-00001-of-00001.fp16.safetensors"]
    assert files_of("unet", old, "fp16") == old


class Recorder:
    """A pipeline that notes what is done with it."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **named: self.calls.append((name, args or named))


@pytest.mark.parametrize(
    ("weights", "asked", "offloaded"), [(10**6, None, False), (10**9, None, True), (10**9, "0", False), (1, "1", True)]
)
def test_parts_wait_on_the_cpu_where_a_gpu_is_too_small(
    monkeypatch: pytest.MonkeyPatch, weights: int, asked: str | None, offloaded: bool
) -> None:
    monkeypatch.setattr(pipelines, "free_bytes", lambda device: 10**8)
    monkeypatch.delenv("BRICKYARD_OFFLOAD", raising=False)
    if asked:
        monkeypatch.setenv("BRICKYARD_OFFLOAD", asked)
    pipeline, gpu = Recorder(), torch.device("cuda")
    place(pipeline, gpu, weights)
    slow = [("enable_attention_slicing", {}), ("enable_model_cpu_offload", {"device": gpu})]
    assert pipeline.calls == (slow if offloaded else [("to", (gpu,))])


def test_the_cpu_needs_no_offloading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRICKYARD_OFFLOAD", "1")
    pipeline = Recorder()
    place(pipeline, torch.device("cpu"), 10**12)
    assert pipeline.calls == [("to", (torch.device("cpu"),))]


def test_the_built_in_pipeline_is_listed_where_it_is_there(
    saved: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipelines, "ASSETS", tmp_path / "nothing")
    assert IMAGE not in {info.id for info in bases.catalogue()}
    monkeypatch.setattr(pipelines, "ASSETS", saved["sd"])
    assert [info.kind for info in bases.catalogue()] == ["text", "image"]
    base = load_base(IMAGE)
    assert isinstance(base, ImageBase)
    assert (base.info.id, base.info.source, base.guidance) == (IMAGE, "built-in", pipelines.GUIDANCE)
    assert module_shapes(IMAGE) == module_shapes(base)


def test_built_in_adapters_of_pictures(saved: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As diffusers saves them and as kohya's tools do, each in its folder."""
    for name, form in (("red", "diffusers"), ("blue", "kohya")):
        write_lora(tmp_path / "assets" / name, "sd", 1, form)
    monkeypatch.setattr(library, "IMAGE_ASSETS", tmp_path / "assets")
    entries = library.builtin("image")
    assert [(entry.name, entry.source) for entry in entries] == [("blue", "built-in"), ("red", "built-in")]
    assert not {entry.key for entry in entries} & {entry.key for entry in library.builtin()}
    shapes = module_shapes(str(saved["sd"]))
    assert all(library.fits(entry, shapes) is None for entry in entries)
    recipe = Source(path="blue", sha256=library.get(entries[0].key).sha256)
    assert library.add_source(recipe, tmp_path) == entries[0]


@pytest.mark.parametrize(("name", "form", "written"), [("sd", "peft", "diffusers"), ("flux", "kohya", "diffusers")])
def test_merges_are_written_in_a_format_that_holds_them(
    saved: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, form: str, written: str
) -> None:
    monkeypatch.setenv("BRICKYARD_HOME", str(tmp_path / "home"))
    sources = [library.get(library.add_folder(write_lora(tmp_path / str(n), name, n, form)).key) for n in (1, 2)]
    entry = library.merge(sources, "both", method="svd", rank=2)
    assert library.get(entry.key).format == written
    assert (entry.path / "pytorch_lora_weights.safetensors").is_file()
    assert library.fits(entry, module_shapes(str(saved[name]))) is None
