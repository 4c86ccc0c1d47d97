"""What makes decoding fast must change nothing: the cache with room, packed weights, the memory estimate."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers.cache_utils import DynamicCache

from backends import memory
from backends.memory import bytes_of_row, out_of_memory, rows_at_once
from backends.packed import Packed, pack, packed_forward
from backends.room import ROOM, roomy_cache
from tests.tiny import tiny_base, tiny_model


def test_a_cache_with_room_holds_what_transformers_cache_holds() -> None:
    model = tiny_model()
    caches = roomy_cache(model.config), DynamicCache(config=model.config)
    generator = torch.Generator().manual_seed(0)
    steps: list[tuple[str, int]] = [
        ("new", 5),
        ("new", 1),
        ("keep", 2),
        ("new", 1),
        ("new", ROOM),
        ("repeat", 3),
        ("new", 1),
    ]
    steps += [("new", 3), ("crop", 4), ("new", 2), ("copy", 0), ("new", 1)]
    rows = 3
    for step, number in steps:
        if step == "new":
            states = [[torch.randn(rows, 2, number, 6, generator=generator) for _ in range(2)] for _ in range(2)]
            for layer, (keys, values) in enumerate(states):
                found = [cache.update(keys, values, layer) for cache in caches]
                assert all(torch.equal(mine, theirs) for mine, theirs in zip(*found, strict=True))
        for i, cache in enumerate(caches):
            if step == "keep":
                cache.batch_select_indices(torch.tensor([2, 0]))
            elif step == "repeat":
                cache.batch_repeat_interleave(number)
            elif step == "crop":
                cache.crop(-number)
            elif step == "copy":
                caches = (copy.deepcopy(cache), caches[1]) if i == 0 else (caches[0], copy.deepcopy(cache))
        rows = {"keep": 2, "repeat": rows * number}.get(step, rows)
        assert caches[0].get_seq_length() == caches[1].get_seq_length()


def test_a_copied_cache_does_not_write_into_the_original() -> None:
    cache = roomy_cache(tiny_model().config)
    cache.update(torch.zeros(1, 2, 3, 6), torch.zeros(1, 2, 3, 6), 0)
    twin = copy.deepcopy(cache)
    twin.update(torch.ones(1, 2, 1, 6), torch.ones(1, 2, 1, 6), 0)
    cache.update(torch.full((1, 2, 1, 6), 2.0), torch.zeros(1, 2, 1, 6), 0)
    assert float(twin.layers[0].keys[0, 0, 3, 0]) == 1.0
    assert float(cache.layers[0].keys[0, 0, 3, 0]) == 2.0


def test_a_new_token_is_written_in_place() -> None:
    cache = roomy_cache(tiny_model().config)
    cache.update(torch.zeros(1, 2, 3, 6), torch.zeros(1, 2, 3, 6), 0)
    place = cache.layers[0].keys.data_ptr()
    for _ in range(ROOM):
        cache.update(torch.zeros(1, 2, 1, 6), torch.zeros(1, 2, 1, 6), 0)
    assert cache.layers[0].keys.data_ptr() == place


def test_packed_weights_give_the_same_logits_and_leave_nothing() -> None:
    model = tiny_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attributes = [set(module.__dict__) for module in model.modules()]
    ids = torch.randint(0, 60, (5, 7), generator=torch.Generator().manual_seed(0))
    wanted = model(ids).logits
    packed = pack(model, torch.device("cpu"), torch.float32)
    assert packed is not None, "this PyTorch should be able to; if a new one is not, say so in backends/packed.py"
    with torch.inference_mode(), packed:
        found = model(ids).logits
        one = model(ids[:1, :1]).logits
        assert any("forward" in module.__dict__ for module in model.modules())
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(one, model(ids[:1, :1]).logits, rtol=1e-4, atol=1e-4)
    assert [set(module.__dict__) for module in model.modules()] == attributes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(model(ids).logits, wanted)


def test_packed_layers_keep_their_bias() -> None:
    layer, x = nn.Linear(16, 24), torch.randn(3, 5, 16)
    torch.testing.assert_close(packed_forward(layer)(x), layer(x))
    torch.testing.assert_close(packed_forward(layer)(x[:1, :1]), layer(x[:1, :1]))


def test_packed_weights_end_with_an_error_too() -> None:
    model = tiny_model()
    with pytest.raises(KeyboardInterrupt), Packed(model):
        raise KeyboardInterrupt
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_weights_are_packed_only_where_it_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    assert pack(model, torch.device("cpu"), torch.bfloat16) is None
    assert pack(model, torch.device("cuda"), torch.float32) is None
    monkeypatch.setattr("backends.packed.MOST_BYTES", 100)
    assert pack(model, torch.device("cpu"), torch.float32) is None


@pytest.mark.parametrize(
    "error", [AttributeError("no such operator"), TypeError("7 arguments"), RuntimeError("other output")]
)
def test_a_pytorch_that_cannot_pack_is_told(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(layer: torch.nn.Linear) -> None:
        raise error

    monkeypatch.setattr("backends.packed.packed_forward", refuse)
    with pytest.warns(UserWarning, match=f"without packed weights: torch .*: {error}"):
        assert pack(tiny_model(), torch.device("cpu"), torch.float32) is None


def test_rows_at_once_follow_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base()
    row = bytes_of_row(base.model.config, 100, torch.float32)
    # Keys and values alone: 2 layers × 2 heads × 6 numbers × 100 tokens × 2 × 4 bytes.
    assert row > 2 * 2 * 6 * 100 * 2 * 4
    assert bytes_of_row(base.model.config, 200, torch.float32) > 1.9 * row
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10 * row)
    assert rows_at_once(base, 100) == 10
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1)
    assert rows_at_once(base, 100) == 1


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), True),
        (RuntimeError("MPS backend out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"), True),
        (RuntimeError("shape mismatch"), False),
    ],
)
def test_running_out_of_memory_is_recognised(error: Exception, is_memory: bool) -> None:
    assert out_of_memory(error) == is_memory
