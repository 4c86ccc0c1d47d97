"""Edited adapters against dense updates without the units, in memory, in a merge, and made again from the recipe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lego import AdapterError, Recipe, merge_into, read_adapter, write_adapter
from lego.edit import Edit, edited
from lego.verify import verify
from tests.conftest import make_adapter

FIRST, SECOND = (f"model.layers.{layer}.self_attn.q_proj" for layer in (0, 1))


def dense(adapter, module: str, factors: dict[int, float]) -> np.ndarray:
    """Σ_u factor_u s b_u a_uᵀ, unit by unit."""
    found = adapter[module]
    return sum(
        factors.get(unit, 1.0) * found.scale * np.outer(found.up[:, unit].double(), found.down[unit].double())
        for unit in range(found.rank)
    )


def test_units_are_taken_out_and_scaled() -> None:
    adapter = make_adapter("one", 1)
    found = edited(adapter, [Edit(0, {FIRST: [1, 3]}), Edit(-0.5, {FIRST: [0], SECOND: [2, 2]})])
    assert found.modules[FIRST].rank == 2
    np.testing.assert_allclose(found[FIRST].delta(), dense(adapter, FIRST, {0: -0.5, 1: 0, 3: 0}), atol=1e-6)
    np.testing.assert_allclose(found[SECOND].delta(), dense(adapter, SECOND, {2: -0.5}), atol=1e-6)
    untouched = next(module for module in adapter.modules if module.endswith("k_proj"))
    assert torch.equal(found[untouched].delta(), adapter[untouched].delta())


def test_a_module_without_units_is_gone() -> None:
    found = edited(make_adapter("one", 1), [Edit(0, {FIRST: range(4)})])
    assert FIRST not in found.modules
    assert SECOND in found.modules


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (Edit(0, {"nowhere": [0]}), "nowhere"),
        (Edit(0, {FIRST: [4]}), r"has no units \[4\]"),
        (Edit(0, dict.fromkeys(make_adapter("one", 1).modules, range(4))), "no unit left"),
    ],
)
def test_what_cannot_be_edited_is_told(edit: Edit, message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        edited(make_adapter("one", 1), [edit])


def test_an_edited_merge_is_exact_and_made_again_from_its_recipe(tmp_path: Path) -> None:
    sources = []
    for number in (1, 2):
        write_adapter(make_adapter(f"source{number}", number), tmp_path / f"source{number}", torch.float32)
        sources.append(read_adapter(tmp_path / f"source{number}"))
    changed = [edited(sources[0], [Edit(0, {FIRST: [0]}), Edit(3, {SECOND: [1]})]), sources[1]]
    out = tmp_path / "merged"
    merge_into(out, changed, method="concat", weights=[1.0, 0.5], dtype=torch.float32)
    merged = read_adapter(out)
    for module, factors in ((FIRST, {0: 0.0}), (SECOND, {1: 3.0})):
        wanted = dense(sources[0], module, factors) + 0.5 * dense(sources[1], module, {})
        np.testing.assert_allclose(merged[module].delta(), wanted, atol=1e-6)
    recipe = Recipe.read(out / "recipe.yaml")
    assert recipe.sources[0].sha256 == sources[0].sha256
    assert [edit.model_dump() for edit in recipe.sources[0].edits or ()] == [
        {"factor": 0.0, "units": {FIRST: [0]}},
        {"factor": 3.0, "units": {SECOND: [1]}},
    ]
    assert recipe.sources[1].edits is None
    assert verify(out).equal
