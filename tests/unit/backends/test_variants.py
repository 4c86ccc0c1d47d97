"""Pools and prompts of variants."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends import library, variants
from backends.errors import BaseError
from backends.variants import Variant, encode, in_memory, pool_of
from lego import AdapterError
from mole.live import Weighting
from tests.tiny import tiny_base, tiny_entry


def test_a_pool_is_kept_for_the_same_adapters(tmp_path: Path) -> None:
    base, keys = tiny_base(), [tiny_entry(tmp_path / name, seed).key for seed, name in enumerate("abcde", start=50)]
    one = [Variant("a", Weighting(((keys[0], 1.0), (keys[1], 0.5))))]
    other = [Variant("b", Weighting(((keys[1], 2.0),))), Variant("c", Weighting(((keys[0], 0.0),)))]
    first = pool_of(base, one)
    assert pool_of(base, other) is first
    assert set(first.keys) == {keys[0], keys[1]}
    for key in keys[1:]:
        pool_of(base, [Variant("x", Weighting(((key, 1.0),)))])
    assert pool_of(base, one) is not first


def test_factors_are_read_once_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tiny_entry(tmp_path / "a", 60).key, tiny_entry(tmp_path / "b", 61).key
    read = in_memory(first)
    assert in_memory(first) is read
    monkeypatch.setattr(variants, "FACTOR_BYTES", 1)
    kept = in_memory(second)
    assert in_memory(second) is kept
    assert in_memory(first) is not read


def test_an_adapter_that_has_changed_is_noticed_though_it_is_in_memory(tmp_path: Path) -> None:
    entry = tiny_entry(tmp_path / "a", 62)
    in_memory(entry.key)
    (entry.path / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterError, match="has changed or gone"):
        in_memory(entry.key)
    with pytest.raises(AdapterError, match="there is no adapter"):
        library.get(entry.key)


def test_prompts_become_tokens() -> None:
    base = tiny_base()
    assert base.tokenizer.decode(encode(base, "Hi")) == "user: Hi\na: "
    assert base.tokenizer.decode(encode(base, "Hi", system="Be kind")) == "system: Be kind\nuser: Hi\na: "
    assert base.tokenizer.decode(encode(base, "Hi", chat=False)) == "Hi"
    assert encode(base, "", chat=False) == [base.tokenizer.eos_token_id]
    base.tokenizer.chat_template = None
    assert not base.has_chat_template
    with pytest.raises(BaseError, match="has no chat template"):
        encode(base, "Hi")
