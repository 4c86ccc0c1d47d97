"""The live layer in a UNet against PEFT with the same adapters, row by row."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from lego import Adapter, Factors, read_adapter
from mole.live import LivePool, Weighting, attach
from tests.tiny_unet import ATTENTION, EVERY, FEED, SQUARE, modules_of, noisy, rows_of, tiny_unet

TARGETS = {
    "one": {"r": 4, "lora_alpha": 6, "kinds": EVERY},
    "two": {"r": 3, "lora_alpha": 5, "use_rslora": True, "kinds": (*ATTENTION, *FEED, *SQUARE, "conv2")},
    "three": {"r": 2, "lora_alpha": 1, "kinds": ("conv1", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj")},
}
VARIANTS = [
    Weighting(),
    Weighting((("one", 1.0),)),
    Weighting((("two", 1.0),)),
    Weighting((("three", 1.0),)),
    Weighting((("one", 0.5), ("two", -0.8), ("three", 1.5))),
    Weighting((("three", 0.25), ("two", 1.0))),
]
LARGE = 0.6
"""Spread of the factors' numbers: updates then change the output by about its own size."""


def make(base: nn.Module, folder: Path, seed: int, kinds: tuple[str, ...], **config: Any) -> Path:
    """A PEFT adapter with random factors on modules of some kinds."""
    targets = modules_of(base, kinds)
    made = get_peft_model(copy.deepcopy(base), LoraConfig(target_modules=targets, **config))  # type: ignore[arg-type]
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * LARGE / parameter[0].numel() ** 0.5)
    made.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, base = tmp_path_factory.mktemp("adapters"), tiny_unet()
    return {
        name: make(base, folder / name, seed, **config)  # type: ignore[arg-type]
        for seed, (name, config) in enumerate(TARGETS.items())
    }


@pytest.fixture(scope="module")
def pool(paths: dict[str, Path]) -> LivePool:
    return LivePool({name: read_adapter(path) for name, path in paths.items()}, "cpu", torch.float32)


@pytest.fixture(scope="module")
def wanted(paths: dict[str, Path]) -> Tensor:
    """What PEFT computes for every sample of `noisy` with the variant of its row; PEFT sums active adapters."""
    peft: Any = PeftModel.from_pretrained(tiny_unet(), paths["one"], adapter_name="one")
    for name in ("two", "three"):
        peft.load_adapter(paths[name], adapter_name=name)
    layers = [module for module in peft.modules() if hasattr(module, "set_scale")]
    inputs, found = noisy(2 * len(VARIANTS)), []
    for row in range(2 * len(VARIANTS)):
        weights = dict(VARIANTS[row % len(VARIANTS)].adapters)
        if weights:
            peft.base_model.set_adapter(list(weights))
        for layer in layers:
            for name, weight in weights.items():
                if name in layer.scaling:
                    layer.set_scale(name, weight)
        with torch.no_grad():
            if weights:
                found.append(peft(**rows_of(inputs, [row])).sample)
            else:
                with peft.disable_adapter():
                    found.append(peft(**rows_of(inputs, [row])).sample)
    return torch.cat(found)


def test_the_adapters_change_something(wanted: Tensor) -> None:
    with torch.no_grad():
        bare = tiny_unet()(**noisy(len(wanted))).sample
    changes = (wanted - bare).flatten(1).norm(dim=1) / bare.flatten(1).norm(dim=1)
    torch.testing.assert_close(wanted[0], bare[0], rtol=1e-4, atol=2e-5)
    assert all(change > 0.1 for row, change in enumerate(changes) if row % len(VARIANTS))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("times", [1, 2])
def test_every_row_is_what_peft_gives(pool: LivePool, wanted: Tensor, times: int, layout: torch.memory_format) -> None:
    """Also of a batch that holds the rows twice, as classifier-free guidance makes it."""
    unet = tiny_unet().to(memory_format=layout)
    count = times * len(VARIANTS)
    inputs = noisy(2 * len(VARIANTS))
    with torch.no_grad():
        bare = unet(**inputs).sample
        with attach(unet, pool) as live:
            live.set_rows(pool.row_weights(VARIANTS))
            found = unet(**rows_of(inputs, range(count))).sample
        assert torch.equal(unet(**inputs).sample, bare), "nothing is left"
    torch.testing.assert_close(found, wanted[:count], rtol=1e-5, atol=4e-5)


@pytest.mark.parametrize("row", range(len(VARIANTS)))
def test_one_variant_in_all_rows(pool: LivePool, wanted: Tensor, row: int) -> None:
    """Equal weights are folded into the factors; a batch of one row may be of any size."""
    unet, samples = tiny_unet(), [row, row + len(VARIANTS)]
    with torch.no_grad(), attach(unet, pool) as live:
        live.set_rows(pool.row_weights([VARIANTS[row]]))
        found = unet(**rows_of(noisy(2 * len(VARIANTS)), samples)).sample
    torch.testing.assert_close(found, wanted[samples], rtol=1e-5, atol=4e-5)


def test_muted_units_are_an_adapter_without_them(pool: LivePool, paths: dict[str, Path]) -> None:
    unet, one = tiny_unet(), read_adapter(paths["one"])
    muted = {module: {0, one[module].rank - 1} for module in list(one.modules)[::3]}
    names = frozenset(("one", module, unit) for module, units in muted.items() for unit in units)
    factors = {}
    for module in one.modules:
        left = [unit for unit in range(one[module].rank) if unit not in muted.get(module, ())]
        f = one[module]
        factors[module] = Factors(f.down[left], f.up[:, left], f.scale, kernel=f.kernel)
    less = LivePool({"less": Adapter.from_factors("less", factors)}, "cpu", torch.float32)
    inputs = noisy(2)
    with torch.no_grad():
        with attach(unet, less) as live:
            live.set_rows(less.row_weights([Weighting((("less", 1.0),))]))
            wanted = unet(**inputs).sample
        with attach(unet, pool) as live:
            live.set_rows(pool.row_weights([Weighting((("one", 1.0),)), Weighting((("one", 1.0),), names)]))
            found = unet(**inputs).sample
    torch.testing.assert_close(found[1], wanted[1], rtol=1e-5, atol=4e-5)
    assert (found[0] - wanted[0]).norm() > 0.01 * wanted[0].norm()


def test_in_half_precision(paths: dict[str, Path]) -> None:
    """Rows of the base stay bit-identical to it; what a network of random weights makes of rounding tells no more than that."""
    unet = tiny_unet().to(torch.bfloat16)
    half = LivePool({name: read_adapter(path) for name, path in paths.items()}, "cpu", torch.bfloat16)
    inputs = noisy(len(VARIANTS))
    inputs |= {name: inputs[name].to(torch.bfloat16) for name in ("sample", "encoder_hidden_states")}
    with torch.no_grad():
        bare = unet(**inputs).sample
        with attach(unet, half) as live:
            live.set_rows(half.row_weights(VARIANTS))
            found = unet(**inputs).sample
    assert found.dtype == torch.bfloat16
    assert found.isfinite().all()
    assert torch.equal(found[0], bare[0])
    assert not any(torch.equal(found[row], bare[row]) for row in range(1, len(VARIANTS)))
