"""What trained gates do: their choices for prompts, and their scores beside what they are made of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backends import gates as store
from backends import library
from backends.bases import TextBase
from backends.decode import forward, pad_left, read_by_gates
from backends.gates import GateEntry
from backends.lent import Keys, lent
from backends.rows import HELD_OUT, read_rows, rows_file
from backends.score import Scores, score
from backends.variants import Variant, encode, pool_of, routes_of
from lego.errors import AdapterError
from mole.gated import Gated
from mole.pool import Weighting
from mole.trace import Trace, trace


def few(**arguments: Any) -> float:
    """Seconds of one forward pass on a lent GPU, with all that comes before it."""
    return 20


def of_entry(entry: GateEntry, **others: Any) -> Keys:
    """The keys of gates; those of their LoRAs come along."""
    return (), (entry.key,)


@lent(few, of_entry)
def choices(
    base: TextBase, entry: GateEntry, prompts: Sequence[str], masked: tuple[str, ...] = (), chat: bool = True
) -> Trace:
    """What every gate chooses for prompts.

    Args:
        base: on which the gates were trained.
        entry: of the gates.
        prompts: the samples.
        masked: keys of the LoRAs that are left out.
        chat: whether prompts get the chat template.

    Raises:
        AdapterError: when the gates do not fit, or there is no prompt.
    """
    if not prompts:
        raise AdapterError("there is no prompt", None, "Give at least one.")
    shown = [Variant(entry.name, entry.weighting(masked))] * len(prompts)
    live = Gated(base.model, pool_of(base, shown[:1]))
    live.set_rows(live.pool.row_weights([variant.weighting for variant in shown]), routes_of(base, shown))
    ids, mask = pad_left([encode(base, prompt, chat) for prompt in prompts], base.device)
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    read = read_by_gates(mask, [0] * len(prompts))
    forward(
        base, live, read, input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=1
    )
    return trace(live.routes)


def beside(entry: GateEntry, masks: Sequence[tuple[str, ...]] = ((),)) -> list[Variant]:
    """The variants to judge gates by: the base, each LoRA, their average (NLA), the gates with each mask."""
    names = dict(zip(entry.experts, (library.entry(key).title for key in entry.experts), strict=True))
    average = Weighting(tuple((key, 1 / len(names)) for key in names))
    variants = [Variant("Base"), *(Variant(title, Weighting(((key, 1.0),))) for key, title in names.items())]
    variants.append(Variant("Average", average))
    for masked in masks:
        without = " and ".join(names.get(key, key) for key in masked)
        variants.append(Variant(f"{entry.name} without {without}" if masked else entry.name, entry.weighting(masked)))
    return variants


def scores(
    base: TextBase, entry: GateEntry, rows: str | None = None, split: str = HELD_OUT, masked: Sequence[str] = ()
) -> dict[str, Scores]:
    """Scores of the gates beside what they are made of, by task.

    Args:
        base: on which the gates were trained.
        entry: of the gates.
        rows: a JSONL file or built-in task; all that the gates were trained on unless given.
        split: which rows count; ``all`` for every row.
        masked: names of LoRAs; then the gates are scored without them too.

    Raises:
        AdapterError: when the gates do not fit, a name is unknown, or there are no such rows.
    """
    masks = [(), *([store.masked_keys(entry, masked)] if masked else [])]
    variants = beside(entry, masks)
    found = {}
    for place in [rows] if rows else [data.rows for data in entry.saved.recipe.data]:
        path = rows_file(place, Path())
        *_, found[path.stem] = score(base, variants, read_rows(path, split).rows)
    return found
