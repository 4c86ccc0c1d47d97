"""Interference in cases whose answer is known, and how results are told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import lego
from lego import Adapter, AdapterError, Factors
from lego.compare import compare
from lego.effective import effective_weights
from lego.interference import interference
from lego.tables import grid, short
from tests.conftest import half_pair, make_adapter, mixed_adapters, write_peft


def one_unit(name: str, a: list[float], b: list[float], scale: float = 1.0) -> Adapter:
    return Adapter.from_factors(name, {"fc": Factors(torch.tensor([a]), torch.tensor([b]).T, scale)})


def test_the_same_adapter_twice_touches_itself_everywhere() -> None:
    found = interference([make_adapter("one", 1), make_adapter("again", 1)])
    for name in ("cosine", "unit_max", "overlap_in", "overlap_out", "hit", "change"):
        assert getattr(found, name)[:, 0, 1] == pytest.approx(1, abs=1e-6), name
    assert found.sign_conflict[:, 0, 1] == pytest.approx(0)
    assert found.score == pytest.approx(1, abs=1e-6)


def test_opposite_adapters_cancel() -> None:
    found = interference([make_adapter("one", 1), make_adapter("again", 1)], [1, -1])
    assert found.cosine[:, 0, 1] == pytest.approx(-1)
    assert found.unit_max[:, 0, 1] == pytest.approx(1)
    assert found.sign_conflict[:, 0, 1] == pytest.approx(1)
    assert found.scores == pytest.approx(1, abs=1e-6)


def test_adapters_of_other_inputs_do_not_touch() -> None:
    found = interference([one_unit("one", [1, 0, 0], [1, 1]), one_unit("other", [0, 1, 1], [1, 1])])
    assert found.overlap_in[0, 0, 1] == 0
    assert found.overlap_out[0, 0, 1] == pytest.approx(1)
    assert found.score[0] == 0
    assert found.change_by_others[0].tolist() == [0, 0]


def test_the_score_is_of_what_the_others_do_on_the_inputs_that_one_reads() -> None:
    """a' = (3, 4)/5 of strength 10 beside a = (1, 0) of strength 1: 36 % of its energy falls on a, and 6 times what a does."""
    found = interference([one_unit("one", [1, 0], [1, 0]), one_unit("other", [0.6, 0.8], [0, 1], scale=10)])
    assert found.scores[0] == pytest.approx([0.36, 0.36])
    assert found.change[0, 0, 1] == pytest.approx(6)
    assert found.change[0, 1, 0] == pytest.approx(0.06)
    assert found.cosine[0, 0, 1] == pytest.approx(0, abs=1e-12)


def test_others_that_cancel_each_other_do_nothing() -> None:
    copies = [make_adapter(name, 2) for name in ("two", "copy", "another")]
    found = interference([make_adapter("one", 1), *copies], [1, 0.9, -0.3, -0.6])
    assert found.change_by_others[:, 0] == pytest.approx(0, abs=1e-6)
    assert found.scores[:, 0] == pytest.approx(0)  # not rounding over rounding
    assert found.hit[:, 0, 1].min() > 0


def test_one_update_in_other_units_is_the_same_to_all_but_the_units() -> None:
    plain = make_adapter("plain", 1)
    mix = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))[0] * 3
    mixed = {m: Factors(mix @ plain[m].down, plain[m].up @ mix.inverse(), plain[m].scale) for m in plain.modules}
    other = make_adapter("other", 2)
    one, two = interference([plain, other]), interference([Adapter.from_factors("mixed", mixed), other])
    for name in ("cosine", "overlap_in", "overlap_out", "hit", "change", "scores", "sign_conflict"):
        assert getattr(one, name) == pytest.approx(getattr(two, name), abs=1e-5), name
    assert one.unit_max[0, 0, 1] != pytest.approx(two.unit_max[0, 0, 1], abs=1e-3)


def test_a_module_of_one_adapter_is_no_conflict() -> None:
    found = interference(mixed_adapters())
    alone = [m for m, module in enumerate(found.modules) if module.endswith("up_proj")]
    assert len(alone) == 2
    assert (found.score[alone] == 0).all()
    assert (found.score[[m for m in range(len(found.modules)) if m not in alone]] > 0).all()


def test_an_update_of_zero_is_nothing() -> None:
    found = interference([one_unit("one", [1, 0], [1, 0]), one_unit("nothing", [1, 0], [0, 0])])
    told = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert told["overall"]["scores"] == [0, 0]
    assert told["overall"]["cosine"][0][1] == 0
    assert told["overall"]["overlap_out"][0][1] == 0


def test_sampled_rows_are_seeded() -> None:
    adapters = mixed_adapters()
    first, again, other = (interference(adapters, rows=6, seed=seed).opposed for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()


def test_effective_weights_of_twins_are_shared() -> None:
    one, twin = make_adapter("one", 1), make_adapter("twin", 1)
    found = effective_weights(lego.merge([one], method="sum", weights=[3]), [one, twin])
    assert found.overall == pytest.approx([1.5, 1.5])
    assert found.overall_explained == pytest.approx(1)
    stranger = effective_weights(make_adapter("stranger", 5), [one])
    assert stranger.overall_explained < 0.1


def test_a_merge_is_recognised_by_the_hashes_of_its_sources() -> None:
    one, two, three = (make_adapter(f"a{seed}", seed) for seed in range(3))
    merged = lego.merge([one, two], method="sum", weights=[1, -0.5], name="merged")
    found = compare([one, two, merged])
    assert found.merges[0].weights == (1, -0.5)
    assert float(found.merges[0].fidelity.total().relative_error) < 1e-5
    assert found.merges[0].effective.overall == pytest.approx([1, -0.5])
    lacking = compare([one, three, merged])
    assert not lacking.merges
    assert lacking.missing == {"merged": ["a1"]}
    assert lacking.interference is not None
    assert lacking.interference.adapters == ("a0", "a2", "merged")
    assert "merged: sources not given: a1" in lacking.text()
    assert compare([one, merged]).interference is not None
    assert compare([one, lego.merge([one], method="sum")]).interference is None


def test_copies_of_one_file_with_other_scales_are_told_apart_by_name(tmp_path: Path) -> None:
    """The hash of a file does not see the alpha in the config beside it."""
    tensors = half_pair("q_proj")
    folders = [write_peft(tmp_path / name, tensors, lora_alpha=alpha) for name, alpha in (("one", 8), ("twice", 16))]
    one, twice = (lego.read_adapter(folder) for folder in folders)
    assert one.sha256 == twice.sha256
    for adapters in ([one, twice], [twice, one]):
        for source in adapters:
            found = compare([*adapters, lego.merge([source], method="sum")])
            assert float(found.merges[0].fidelity.total().relative_error) < 1e-5


def test_tables_fit_a_terminal_and_start_with_the_worst() -> None:
    adapters = [
        make_adapter("adapter-of-a-very-long-name-indeed-" * 3 + str(seed), seed, layers=9) for seed in range(8)
    ]
    found = compare([*adapters, lego.merge(adapters, method="sum", name="merged-" * 20)])
    for text in (found.text(), found.interference.text(), found.merges[0].effective.text()):
        assert max(map(len, text.splitlines())) <= 100
    assert "… and 44 more pairs" in found.interference.text()  # 8 · 7 − 12
    worst = found.interference.modules[int(found.interference.score.argmax())]
    table = found.interference.text().split("module, worst first")[1].splitlines()
    assert table[1].startswith(worst)
    json.dumps(found.as_dict(), allow_nan=False)


def test_tables() -> None:
    assert grid(["name", "n"], [["a", "1"], ["bcdef", "20"]]) == ["name    n", "a       1", "bcdef  20"]
    assert short("abcdefghij", 5) == "ab…ij"
    assert short("abcde", 5) == "abcde"


def test_bad_input() -> None:
    with pytest.raises(AdapterError, match="weights for"):
        interference(mixed_adapters(), [1, 2])
    with pytest.raises(AdapterError, match="from 0 rows"):
        interference(mixed_adapters(), rows=0)
    with pytest.raises(AdapterError, match="shape"):
        compare([one_unit("one", [1, 0], [1, 0]), one_unit("other", [1, 0, 0], [1, 0])])


def test_adapters_without_a_common_module_are_named() -> None:
    one, other = make_adapter("one", 1, kinds=("q_proj",)), make_adapter("other", 2, kinds=("k_proj", "up_proj"))
    both = make_adapter("both", 3, kinds=("q_proj", "k_proj"))
    found = compare([one, both, other])
    assert found.apart == (("one", "other"),)
    assert found.as_dict()["no_module_together"] == [["one", "other"]]
    assert "one and other adapt no module together" in found.text()
    assert "together" not in compare([one, both]).text()
