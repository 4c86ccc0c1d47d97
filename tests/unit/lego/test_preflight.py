"""What headers alone tell: facts, all reasons to refuse, in milliseconds; the same texts as reading gives."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import save_file as save_apart

import lego
from lego import Adapter, AdapterError, Factors
from lego.formats import FORMATS
from tests.conftest import half_pair, make_adapter, write_peft

SMALL = torch.ones(2, 2)
UNET = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
KOHYA = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


def save_file(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """As safetensors', which refuses one tensor under two names."""
    save_apart({key: tensor.clone() for key, tensor in tensors.items()}, path, metadata)


def header_of(path: Path) -> dict[str, object]:
    data = path.read_bytes()
    return json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])


def test_facts_of_a_peft_folder(tmp_path: Path) -> None:
    tensors = half_pair("layers.0.q_proj") | {k: v.half() for k, v in half_pair("layers.10.up_proj", rank=2).items()}
    folder = write_peft(tmp_path / "a", tensors, rank_pattern={"up_proj": 2}, base_model_name_or_path="someone/base")
    found = lego.preflight(folder)
    assert (found.format, found.ranks, found.kinds, found.layers) == ("peft", (2, 4), ("q_proj", "up_proj"), (0, 10))
    assert (found.base_model, found.dtypes, found.reasons, found.fused) == ("someone/base", ("F16", "F32"), (), ())
    assert found.bytes == 4 * 48 * 4 + 2 * 48 * 2
    assert dict(found.modules) == dict(lego.read_adapter(folder).modules)


def test_a_header_from_elsewhere_tells_the_same(tmp_path: Path) -> None:
    folder = write_peft(tmp_path / "a", half_pair("m"), use_dora=True, r=3)
    config = json.loads((folder / "adapter_config.json").read_text())
    here, there = (
        lego.preflight(folder),
        lego.preflight_header(header_of(folder / "adapter_model.safetensors"), config, "a/b"),
    )
    assert here == there
    assert len(here.reasons) == 2
    with pytest.raises(AdapterError, match="a/b: is not a readable safetensors file"):
        lego.preflight_header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, config, "a/b")


def test_nothing_but_the_header_is_read(tmp_path: Path) -> None:
    """The operating system's count: the tensors are never touched, so a file of gigabytes costs what its header costs."""
    names = [f"model.layers.{i}.{kind}" for i in range(32) for kind in ("q", "k", "v", "o", "gate", "up", "down")]
    tensors = {key: value for name in names for key, value in half_pair(name, rank=16).items()}
    folder = write_peft(tmp_path / "a", tensors, alpha_pattern={f"layers.{i}.q": i + 1 for i in range(32)})
    file = folder / "adapter_model.safetensors"
    small = (folder / "adapter_config.json").stat().st_size + struct.unpack("<Q", file.read_bytes()[:8])[0]
    lego.preflight(folder)  # imports what it needs
    before = psutil.Process().io_counters().read_chars
    assert len(lego.preflight(folder).modules) == 224
    read = psutil.Process().io_counters().read_chars - before
    assert small <= read < small + 20_000 < file.stat().st_size


# Tensors besides a sound module, and what must be told of them.
REFUSED = {
    f"{KOHYA}.dora_scale": "DoRA rescales the whole weight, so its update is not additive",
    "lora_unet_mid.hada_w1_a": "LoHa multiplies two products",
    "lora_unet_mid.lokr_w1": "LoKr is a Kronecker product",
    "lora_unet_mid.lora_mid.weight": "a third factor",
    "lora_unet_mid.oft_blocks": "OFT rotates the base weight",
    "lora_unet_mid.diff": "whole differences",
    "lora_unet_mid.diff_b": "whole differences",
    "lora_unet_mid.on_input": "IA3 multiplies activations",
    "lora_unet_mid.w_norm": "normalisation weights",
    "bundle_emb.word.string_to_param": "embeddings of new tokens",
    "lora_unet_mid.something_new": "no LoRA factors this version knows: lora_unet_mid.something_new",
    "lora_unet_mid.alpha": "no LoRA factors this version knows: lora_unet_mid.alpha",
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_is_no_plain_lora_is_refused_by_name(tmp_path: Path, key: str) -> None:
    """Quirks 7 and 8, from the header."""
    sound = {f"{KOHYA}.lora_down.weight": SMALL, f"{KOHYA}.lora_up.weight": SMALL}
    save_file({**sound, key: SMALL}, tmp_path / "a.safetensors")
    reasons = lego.preflight(tmp_path / "a.safetensors").reasons
    assert len(reasons) == 1
    assert REFUSED[key] in reasons[0]
    assert key in reasons[0]
    with pytest.raises(AdapterError) as caught:
        lego.read_adapter(tmp_path / "a.safetensors")
    assert all(text.split(". ")[0] in str(caught.value) for text in reasons)


def test_all_reasons_at_once(tmp_path: Path) -> None:
    names = [f"layers.{i}.q" for i in range(5)]
    tensors = {key: value for name in names for key, value in half_pair(name).items()}
    tensors |= {"x.hada_w1_a": SMALL.clone(), "y.lokr_w1": SMALL.clone(), "z": SMALL.clone()}
    folder = write_peft(
        tmp_path / "a",
        tensors,
        r=7,
        use_dora=True,
        init_lora_weights="pissa",
        bias="all",
        tomorrow=1,
        modules_to_save=["a"],
    )
    reasons = lego.preflight(folder).reasons
    for told in (
        "DoRA", "modules_to_save", "pissa", "bias='all'", "tomorrow", "x.hada_w1_a", "y.lokr_w1", "knows: z",
        "layers.0.q has rank 4 but adapter_config.json says 7 (and 4 more like it)",
    ):  # fmt: skip
        assert sum(told in text for text in reasons) == 1, told
    assert len(reasons) == 9


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".ckpt"])
def test_pickles_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"\x80\x04K\x01.")
    for where in (path, tmp_path):
        with pytest.raises(AdapterError, match=r"pickle.*which is never loaded since it can run code.*safetensors"):
            lego.preflight(where)


def test_which_file_a_folder_means(tmp_path: Path) -> None:
    pair = {f"{UNET}.lora_A.weight": SMALL, f"{UNET}.lora_B.weight": SMALL}
    folder = tmp_path / "a"
    folder.mkdir()
    save_file(pair, folder / "some.safetensors")
    (folder / "README.md").write_text("---\nbase_model: someone/base\n---\n")
    assert (lego.preflight(folder).format, lego.preflight(folder).base_model) == ("diffusers", "someone/base")
    assert lego.read_adapter(folder / "some.safetensors").name == "some"
    save_file(pair, folder / "other.safetensors")
    with pytest.raises(AdapterError, match=r"holds 2 safetensors files \(other.safetensors, some.safetensors"):
        lego.preflight(folder)
    save_file({f"{UNET}.lora_A.weight": SMALL}, folder / "pytorch_lora_weights.safetensors")
    assert "has only lora_A" in lego.preflight(folder).reasons[0]


def test_a_peft_file_without_its_config(tmp_path: Path) -> None:
    save_file(half_pair("m"), tmp_path / "renamed.safetensors")
    assert "Give the folder that holds both" in lego.preflight(tmp_path / "renamed.safetensors").reasons[0]
    save_file(half_pair("m"), tmp_path / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match="is a file of a PEFT folder"):
        lego.preflight(tmp_path / "adapter_model.safetensors")


def test_alphas_of_single_files(tmp_path: Path) -> None:
    """A missing alpha is the rank; one that is 0, no number, or several is refused."""
    pair = {f"{KOHYA}.lora_down.weight": torch.ones(4, 2), f"{KOHYA}.lora_up.weight": torch.ones(2, 4)}
    path = tmp_path / "a.safetensors"
    for alpha, scale in (
        (None, 1.0),
        (torch.tensor(2), 0.5),
        (torch.tensor([6.0]), 1.5),
        (torch.tensor(1.0).half(), 0.25),
    ):
        save_file(pair | ({} if alpha is None else {f"{KOHYA}.alpha": alpha}), path)
        assert lego.read_adapter(path).modules[UNET].scale == scale
    for alpha in (torch.tensor(0.0), torch.tensor(float("nan")), torch.tensor([1.0, 2.0])):
        save_file(pair | {f"{KOHYA}.alpha": alpha}, path)
        with pytest.raises(
            AdapterError, match=f"alpha of module {UNET} is (0, so it does nothing|'nan', not a number)"
        ):
            lego.read_adapter(path)


@pytest.mark.parametrize(
    "shapes", [((), ()), ((0, 2), (2, 0)), ((2, 2), (2, 3)), ((2, 2), (2, 2, 1, 1)), ((2, 2, 3, 3), (2, 2, 3, 3))]
)
@pytest.mark.parametrize("stem", ["lora_unet_conv_in", "lora_unet_double_blocks_0_img_attn_qkv"])
def test_shapes_that_do_not_fit_never_reach_a_converter(
    tmp_path: Path, stem: str, shapes: tuple[tuple[int, ...], ...]
) -> None:
    halves = {
        f"{stem}.lora_{half}.weight": torch.ones(shape) for half, shape in zip(("down", "up"), shapes, strict=True)
    }
    save_file(halves, tmp_path / "a.safetensors")
    assert lego.preflight(tmp_path / "a.safetensors").reasons == (
        f"module {stem} has factors of shapes {list(shapes[0])} and {list(shapes[1])}, which do not fit together",
    )


@pytest.mark.parametrize(
    ("metadata", "told"),
    [
        ("{", "is not valid JSON"),
        ("[]", "not a JSON object"),
        ('{"unet.r": 2, "unet.r": 3}', "names 'unet.r' twice"),
        ('{"unet.use_dora": true}', "DoRA"),
        ('{"unet.r": 5}', "has rank 2 but lora_adapter_metadata says 5"),
        ('{"unet.lora_alpha": NaN}', "not a number"),
        ('{"unet.lora_alpha": 1e400}', "not a number"),
        ('{"unet.rank_pattern": [1]}', "no table"),
        ('{"unet.alpha_pattern": {"(a+)+x": 1}}', "may take for ever"),
    ],
)
def test_metadata_that_cannot_be_trusted(tmp_path: Path, metadata: str, told: str) -> None:
    pair = {f"{UNET}.lora_A.weight": SMALL, f"{UNET}.lora_B.weight": SMALL}
    save_file(pair, tmp_path / "a.safetensors", {"lora_adapter_metadata": metadata})
    assert told in lego.preflight(tmp_path / "a.safetensors").reasons[0]


def test_formats_refuse_what_they_cannot_express() -> None:
    language = make_adapter("l", 1)
    pipeline = Adapter.from_factors("p", {UNET: Factors(SMALL, SMALL)}, format="diffusers")
    flux = Adapter.from_factors(
        "f", {"transformer.single_transformer_blocks.0.proj_out": Factors(SMALL, SMALL)}, format="kohya"
    )
    tokens = Adapter.from_factors(
        "t", {"text_encoder.embeddings": Factors(SMALL, SMALL, embedding=True)}, format="diffusers"
    )
    gpt = Adapter.from_factors("g", {"transformer.h.0.attn": Factors(SMALL, SMALL)}, config={"task_type": "CAUSAL_LM"})
    for name, adapter, told in (
        ("kohya", language, "is of one model, and kohya files are of pipelines"),
        ("diffusers", language, "is of one model, and diffusers files are of pipelines"),
        ("diffusers", gpt, "transformer.h.0.attn is of one model"),
        ("peft", pipeline, "parts of a pipeline, and a PEFT folder is of one model"),
        ("kohya", flux, "has no name in kohya's format.*Write it as diffusers"),
        ("diffusers", tokens, "is an embedding, which diffusers files cannot hold"),
    ):
        with pytest.raises(AdapterError, match=told):
            FORMATS[name](adapter)
    FORMATS["peft"](language), FORMATS["diffusers"](pipeline), FORMATS["kohya"](pipeline)
