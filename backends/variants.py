"""A base with weights on the pool; its prompts as tokens; its pool of units."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from backends import gates, library
from backends.base import Base
from backends.errors import BaseError
from backends.language import TextBase
from backends.memory import give_back_at_times
from lego import Adapter
from mole.gated import Route
from mole.live import LivePool, Weighting

KEPT = 3
"""Pools kept in memory: the latest. One holds all adapters of a comparison."""

FACTOR_BYTES = 512 * 2**20
"""Factors of adapters kept in memory, so that a new merge beside known adapters is all that has to be read."""

_pools: OrderedDict[tuple[object, ...], LivePool] = OrderedDict()
_factors: OrderedDict[str, Adapter] = OrderedDict()
_lock = threading.Lock()


@dataclass(frozen=True)
class Variant:
    """A base with weights on the pool, under a name.

    Attributes:
        name: for people.
        weighting: which adapters, how strong, which units muted; an empty one is the base itself.
    """

    name: str
    weighting: Weighting = field(default_factory=Weighting)


def pool_of(base: Base, variants: Sequence[Variant]) -> LivePool:
    """The stacked units of all adapters that the variants name, on the base's device; kept for the next call.

    Raises:
        AdapterError: when the library lacks one of them, or two belong to different bases.
    """
    keys = tuple(sorted({key for variant in variants for key, _ in variant.weighting.adapters}))
    adapters = {key: in_memory(key) for key in keys}
    place = (keys, base.device, base.dtype)
    with _lock:
        if place in _pools:
            _pools.move_to_end(place)
            return _pools[place]
    made = LivePool(adapters, base.device, base.dtype)
    with _lock:
        _pools[place] = made
        full = len(_pools) > KEPT
        while len(_pools) > KEPT:
            _pools.popitem(last=False)
    if full:
        give_back_at_times()
    return made


def routes_of(base: Base, shown: Sequence[Variant]) -> list[Route]:
    """The routes of a batch: rows of one variant share gates and mask.

    Args:
        base: on which the gates must have been trained.
        shown: the variant of each row.

    Raises:
        AdapterError: when there are no such gates, they do not fit, or their mask leaves nothing.
    """
    rows: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    for row, variant in enumerate(shown):
        if variant.weighting.gates:
            rows.setdefault((variant.weighting.gates, variant.weighting.masked), []).append(row)
    return [Route(gates.loaded(base, key), found, masked) for (key, masked), found in rows.items()]


def in_memory(key: str) -> Adapter:
    """An adapter of the library with all its factors read; the latest ones are kept.

    Raises:
        AdapterError: when the library has none, or its file is damaged or has changed.
    """
    source = library.get(key)
    with _lock:
        if key in _factors:
            _factors.move_to_end(key)
            return _factors[key]
    read = Adapter.from_factors(source.name, {module: source[module] for module in source.modules})
    with _lock:
        _factors[key] = read
        while len(_factors) > 1 and 4 * sum(adapter.parameters for adapter in _factors.values()) > FACTOR_BYTES:
            _factors.popitem(last=False)
    return read


def forget(key: str) -> None:
    """Drop what is kept in memory of an adapter."""
    with _lock:
        _factors.pop(key, None)
        for place in [place for place in _pools if key in place[0]]:  # type: ignore[operator]
            del _pools[place]


def encode(base: TextBase, prompt: str, chat: bool = True, system: str | None = None) -> list[int]:
    """A prompt's tokens, ready for the answer to follow.

    Args:
        base: whose tokenizer and chat template are used.
        prompt: the user's message, or with ``chat=False`` the text to continue.
        chat: whether to use the chat template.
        system: the system message; None leaves the template's own.

    Raises:
        BaseError: when the base has no chat template, or no token comes out.
    """
    tokenizer = base.tokenizer
    if chat:
        if not base.has_chat_template:
            raise BaseError("has no chat template", base.info.id, "Use the raw prompt format.")
        messages = [] if system is None else [{"role": "system", "content": system}]
        messages.append({"role": "user", "content": prompt})
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    else:
        ids = tokenizer(prompt)["input_ids"]
    if not ids:
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        ids = [] if start is None else [start]
    if not ids:
        raise BaseError("the prompt is empty", None, "Write something to continue.")
    return list(ids)


def context_length(base: TextBase) -> int | None:
    """The most tokens that the base was made for; None where its config does not say."""
    return getattr(base.model.config.get_text_config(), "max_position_embeddings", None)
