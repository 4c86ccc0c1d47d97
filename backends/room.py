"""A cache of keys and values with room to grow: a new token is written in place instead of copying all earlier ones."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

ROOM = 64
"""Tokens of room that are made at a time, and at least half as many as there are."""


class RoomyLayer(DynamicLayer):
    """As transformers' layer, whose ``keys`` and ``values`` here are the filled part of larger tensors."""

    keys: Tensor
    values: Tensor
    _room: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **named: Any) -> tuple[Tensor, Tensor]:
        """Append the new tokens' keys and values, (rows, heads, tokens, head dimension); returns all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before = self.get_seq_length()
        after = before + key_states.shape[-2]
        # Whatever else changes the cache (dropping or repeating rows) puts new tensors in place of the views.
        if self._room is None or self._room[0].shape[-2] < after or (before and not self._is_view()):
            size = after + max(ROOM, after // 2)
            room = tuple(new.new_empty(*new.shape[:-2], size, new.shape[-1]) for new in (key_states, value_states))
            if before:
                room[0][..., :before, :], room[1][..., :before, :] = self.keys, self.values
            self._room = room  # type: ignore[assignment]
        for place, new in zip(self._room, (key_states, value_states), strict=True):  # type: ignore[arg-type]
            place[..., before:after, :] = new
        self.keys, self.values = (place[..., :after, :] for place in self._room)  # type: ignore[union-attr]
        return self.keys, self.values

    def _is_view(self) -> bool:
        assert self._room is not None
        return self.keys.data_ptr() == self._room[0].data_ptr() and self.keys.shape[0] == self._room[0].shape[0]


def roomy_cache(config: Any) -> DynamicCache:
    """An empty cache for a model; layers of other kinds (sliding windows, states) stay what transformers makes them."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
