"""The tokens at both ends of a unit against cosines computed one token at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from backends import lens, library
from backends.lens import look
from lego import Adapter, Factors
from tests.tiny import tiny_base, tiny_entry


def ranked(base, embedding: torch.Tensor, direction: torch.Tensor) -> list[tuple[str, float]]:
    """Every token with its cosine, the largest first."""
    cosines = [float(torch.cosine_similarity(row.double(), direction.double(), dim=0)) for row in embedding]
    order = sorted(range(len(base.tokenizer)), key=lambda i: -cosines[i])
    return [(base.tokenizer.decode([i]), pytest.approx(cosines[i], abs=1e-5)) for i in order]


@pytest.mark.parametrize("at_once", [7, 16_384])
def test_what_a_unit_reads_and_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(lens, "AT_ONCE", at_once)
    base, adapter = tiny_base(), library.get(tiny_entry(tmp_path / "one", 1).key)
    reader, writer = "model.layers.0.mlp.up_proj", "model.layers.1.self_attn.o_proj"
    reads = look(base, adapter, reader, 2, count=4)
    wanted = ranked(base, base.model.model.embed_tokens.weight, adapter[reader].down[2])
    assert reads.reads is not None
    assert list(reads.reads.most) == wanted[:4]
    assert list(reads.reads.least) == wanted[::-1][:4]
    assert reads.writes is None
    writes = look(base, adapter, writer, 1, count=4)
    wanted = ranked(base, base.model.lm_head.weight, adapter[writer].up[:, 1])
    assert writes.writes is not None
    assert list(writes.writes.most) == wanted[:4]
    assert list(writes.writes.least) == wanted[::-1][:4]
    assert writes.reads is None, "heads' outputs are no residual stream, whatever their width"


def test_a_negative_scale_turns_what_is_written_around() -> None:
    base, module = tiny_base(), "model.layers.0.mlp.down_proj"
    factors = Factors(torch.randn(2, 40), torch.randn(24, 2), 1.0)
    plain = look(base, Adapter.from_factors("plain", {module: factors}), module, 0)
    turned = Adapter.from_factors("turned", {module: Factors(factors.down, factors.up, -1.0)})
    assert plain.writes is not None
    found = look(base, turned, module, 0).writes
    assert found is not None
    assert [text for text, _ in found.most] == [text for text, _ in plain.writes.least]
