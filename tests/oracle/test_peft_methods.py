"""Every method that PEFT has, against PEFT; the exact ones against D itself as well, since PEFT's have been wrong before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import merge_utils
from torch import nn

import lego
from lego import Adapter
from lego.rules import drop_and_rescale
from lego.units import pool
from tests.reference import dense_sum


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.up_proj = nn.Linear(20, 20, bias=False), nn.Linear(20, 36)


class Model(nn.Module):
    """Two blocks with two kinds of linear."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block(), Block()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.layers:
            x = x + block.up_proj(block.q_proj(x))[..., :20]
        return x


def base() -> Model:
    torch.manual_seed(0)
    return Model()


EQUAL = [LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"]) for _ in range(3)]
SCALED = [
    LoraConfig(r=4, lora_alpha=alpha, use_rslora=rs, target_modules=["q_proj", "up_proj"])
    for alpha, rs in ((8, False), (3, True), (2, False))
]
MIXED = [
    LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"]),
    LoraConfig(r=2, lora_alpha=3, use_rslora=True, target_modules=["q_proj"]),
    LoraConfig(
        r=3,
        lora_alpha=4,
        target_modules=["q_proj", "up_proj"],
        rank_pattern={"up_proj": 5},
        alpha_pattern={"layers.1.up_proj": 9},
    ),
]
SETS = {"equal": EQUAL, "scaled": SCALED, "mixed": MIXED}


def trained(configs: list[LoraConfig]) -> PeftModel:
    """A PEFT model with adapters a0, a1, … whose factors are all random."""
    model = get_peft_model(base(), configs[0], adapter_name="a0")
    for i, config in enumerate(configs[1:], 1):
        model.add_adapter(f"a{i}", config)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return model


def saved(model: PeftModel, folder: Path) -> list[Adapter]:
    """The same adapters as `lego` reads them."""
    model.save_pretrained(folder)
    return [lego.read_adapter(folder / name) for name in model.peft_config]


def peft_delta(model: PeftModel, adapter: str, module: str) -> np.ndarray:
    return model.get_submodule(f"base_model.model.{module}").get_delta_weight(adapter).detach().double().numpy()


def relative(found: torch.Tensor, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found.double().numpy() - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("name", SETS)
def test_reading_gives_pefts_own_deltas(name: str, tmp_path: Path) -> None:
    model = trained(SETS[name])
    for adapter in saved(model, tmp_path):
        for module in adapter.modules:
            assert relative(adapter[module].delta(), peft_delta(model, adapter.name, module)) < 1e-6


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [1.0, 0.3, -2.0]])
@pytest.mark.parametrize(
    ("method", "theirs", "sets", "parameters"),
    [
        ("concat", "cat", ["equal", "scaled", "mixed"], {}),
        ("sum", "cat", ["equal", "scaled", "mixed"], {}),
        ("linear", "linear", ["equal", "scaled"], {}),
        ("svd", "svd", ["equal", "scaled", "mixed"], {"rank": 3}),
        ("ties", "ties", ["equal", "scaled"], {"density": 0.45}),
        ("ties", "ties", ["equal", "scaled"], {"density": 0.7, "majority": "frequency"}),
        ("magnitude_prune", "magnitude_prune", ["equal", "scaled"], {"density": 0.45}),
        ("ties_svd", "ties_svd", ["equal", "scaled", "mixed"], {"density": 0.45, "rank": 3}),
        ("ties_svd", "ties_svd", ["equal", "scaled", "mixed"], {"density": 0.7, "rank": 5, "majority": "frequency"}),
        ("magnitude_prune_svd", "magnitude_prune_svd", ["equal", "scaled", "mixed"], {"density": 0.45, "rank": 3}),
    ],
)
def test_equals_peft(
    method: str, theirs: str, sets: list[str], parameters: dict, weights: list[float], tmp_path: Path
) -> None:
    for name in sets:
        model = trained(SETS[name])
        adapters = saved(model, tmp_path / name)
        options = {"svd_rank": parameters.get("rank"), "density": parameters.get("density")}
        options["majority_sign_method"] = parameters.get("majority", "total")
        names = [adapter.name for adapter in adapters]
        model.add_weighted_adapter(names, weights, "merged", combination_type=theirs, **options)
        merged = lego.merge(adapters, method=method, weights=weights, **parameters)
        for module in merged.modules:
            assert relative(merged[module].delta(), peft_delta(model, "merged", module)) < 1e-5, (name, module)
            if method in ("concat", "sum"):
                assert relative(merged[module].delta(), dense_sum(adapters, weights, module)) < 1e-5


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_dare_equals_peft_given_the_same_drops(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained(SCALED)
    adapters, weights, density = saved(model, tmp_path), [1.0, 0.5, -1.0], 0.6
    merged = lego.merge(adapters, method=method, weights=weights, density=density, seed=3)
    for module in merged.modules:
        units = pool(adapters, module, weights, seed=3)
        streams = [f"{half}{source}" for half in "AB" for source in range(3)]  # PEFT prunes all A, then all B
        draws = iter(streams)

        def same_drops(tensor: torch.Tensor, density: float, rescale: bool, draws=draws, units=units) -> torch.Tensor:
            kept = units.uniform(*tensor.shape, stream=next(draws))[0] < density
            return tensor * kept / density

        monkeypatch.setattr(merge_utils, "random_pruning", same_drops)
        target = model.get_submodule(f"base_model.model.{module}")
        names = [adapter.name for adapter in adapters]
        down, up = model.base_model._generalized_task_arithmetic_weighted_adapter(
            method, names, weights, target, density, "total"
        )
        assert relative(merged[module].delta(), (up @ down).detach().double().numpy()) < 1e-5
        assert next(draws, None) is None


@pytest.mark.parametrize("method", ["dare_linear_svd", "dare_ties_svd"])
@pytest.mark.parametrize("name", SETS)
def test_dare_of_updates_equals_peft_given_the_same_drops(
    method: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = trained(SETS[name])
    adapters, weights, density = saved(model, tmp_path), [1.0, 0.5, -1.0], 0.6
    merged = lego.merge(adapters, method=method, weights=weights, density=density, rank=3, seed=3)
    for module in merged.modules:
        units = pool(adapters, module, weights, seed=3)
        sources = iter(units.present)

        def same_drops(
            tensor: torch.Tensor, density: float, rescale: bool, sources=sources, units=units
        ) -> torch.Tensor:
            kept = units.uniform(*tensor.shape, stream=f"{next(sources)}/0")[0] < density
            return tensor * kept / density

        monkeypatch.setattr(merge_utils, "random_pruning", same_drops)
        target = model.get_submodule(f"base_model.model.{module}")
        names = [adapter.name for adapter in adapters]
        down, up = model.base_model._svd_generalized_task_arithmetic_weighted_adapter(
            method, names, weights, 3, target, None, None, density, "total"
        )
        # PEFT's SVD is in fp32, and σ_3 stands close to σ_4 in some modules.
        assert relative(merged[module].delta(), (up @ down).detach().double().numpy()) < 5e-5
        assert next(sources, None) is None


@pytest.mark.parametrize("method", ["svd", "dare_linear_svd", "magnitude_prune_svd"])
@pytest.mark.parametrize("name", SETS)
def test_what_drops_nothing_is_the_exact_sum(method: str, name: str, tmp_path: Path) -> None:
    """Against D itself: versions of PEFT applied the scaling twice."""
    adapters, weights = saved(trained(SETS[name]), tmp_path), [1.0, 0.3, -2.0]
    parameters = {"rank": "all"} | ({} if method == "svd" else {"density": 1.0})
    merged = lego.merge(adapters, method=method, weights=weights, **parameters)
    for module in merged.modules:
        assert relative(merged[module].delta(), dense_sum(adapters, weights, module)) < 1e-5


def test_drops_keep_the_share_and_the_mean(tmp_path: Path) -> None:
    """Density 0.3: about 30 % of the entries survive, divided by 0.3, so that the mean stays."""
    tensor, uniform = torch.ones(1, 300, 300), torch.rand(1, 300, 300, generator=torch.Generator().manual_seed(0))
    dropped = drop_and_rescale(tensor, 0.3, uniform)
    assert float((dropped != 0).float().mean()) == pytest.approx(0.3, abs=0.01)
    assert float(dropped.mean()) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("method", sorted(lego.methods()))
def test_peft_loads_what_is_written(method: str, tmp_path: Path) -> None:
    """Gold test 6, for every method: PeftModel.from_pretrained gives the same ΔW and the same outputs."""
    adapters = saved(trained(MIXED), tmp_path)
    merged = lego.merge(adapters, method=method, weights=[1, 0.5, -0.7])
    lego.write_adapter(merged, tmp_path / "out", torch.float32)
    loaded = PeftModel.from_pretrained(base(), tmp_path / "out")
    for module in merged.modules:
        assert relative(merged[module].delta(), peft_delta(loaded, "default", module)) < 1e-5
    plain, x = base(), torch.randn(3, 20)
    for module in merged.modules:
        plain.get_submodule(module).weight.data += merged[module].delta()
    torch.testing.assert_close(loaded(x), plain(x), rtol=1e-4, atol=1e-4)


def test_modules_of_some_layers_only(tmp_path: Path) -> None:
    """A kind adapted in one layer only must not grow random factors in the others when PEFT loads it."""
    config = LoraConfig(r=4, target_modules=["q_proj"], layers_to_transform=[1], layers_pattern="layers")
    adapters = saved(trained([config]), tmp_path)
    lego.write_adapter(lego.merge(adapters, method="sum"), tmp_path / "out")
    loaded = PeftModel.from_pretrained(base(), tmp_path / "out")
    assert {name.split(".lora_A")[0] for name, _ in loaded.named_parameters() if "lora_A" in name} == {
        "base_model.model.layers.1.q_proj"
    }
