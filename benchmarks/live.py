"""``python -m benchmarks.live``: what running variants live costs.

Two claims, each a ratio against a peer measured in the same run:

- six variants of one prompt in one batch are at least three times faster than the same six one after another;
- one live adapter costs nothing beside PEFT's own forward pass with that adapter.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from statistics import median
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, DynamicCache

from backends import library
from backends.bases import BUILTIN, TextBase, load_base
from backends.text import Sampling, Variant, generate
from backends.variants import encode, pool_of
from benchmarks.clock import seconds
from benchmarks.report import finish, machine, parser_for, table
from mole.live import Live, Weighting

PROMPT = "Write a short story about a lighthouse keeper and the sea."
TOKENS = 64
ADAPTERS = ("past-tense", "sentiment", "kind")
FASTER = 3.0
OVERHEAD = 1.0


def six_variants() -> list[Variant]:
    """The base, three adapters, their average, their sum."""
    by_name = {entry.name: entry for entry in library.builtin()}
    chosen = [by_name[name] for name in ADAPTERS]
    ones = [Variant(entry.title, Weighting(((entry.key, 1.0),))) for entry in chosen]
    weightings = [Weighting(tuple((entry.key, weight) for entry in chosen)) for weight in (1 / len(chosen), 1.0)]
    return [Variant("base"), *ones, Variant("average", weightings[0]), Variant("sum", weightings[1])]


def run(base: TextBase, variants: list[Variant]) -> list[str]:
    """Texts of exactly `TOKENS` tokens each, so that every run does the same work."""
    grid = list(generate(base, variants, [PROMPT], Sampling(max_new_tokens=TOKENS)))[-1]
    assert all(count == TOKENS for row in grid.tokens for count in row), (
        "a text ended early: the runs are not comparable"
    )
    return [row[0] for row in grid.texts]


def six_in_one_batch(base: TextBase, rounds: int) -> tuple[float, float]:
    """Median seconds of one batch of six, and of six single runs, taken in turns."""
    variants = six_variants()
    together, alone = [], []
    ends, base.model.generation_config.eos_token_id = base.model.generation_config.eos_token_id, -1
    try:
        texts = run(base, variants)
        alike = sum(text == run(base, [variant])[0] for text, variant in zip(texts, variants, strict=True))
        print(f"{alike} of {len(texts)} texts of the batch are those of the single runs")
        # In 16 bits a sum depends on the batch's size, in the last place.
        assert alike == len(texts) or base.dtype != torch.float32, "a batch must give the texts of the single runs"
        for _ in range(rounds):
            together.append(seconds(lambda: run(base, variants)))
            alone.append(sum(seconds(lambda v=variant: run(base, [v])) for variant in variants))
    finally:
        base.model.generation_config.eos_token_id = ends
    return median(together), median(alone)


def decoding(model: Any, ids: torch.Tensor) -> Iterator[None]:
    """Prefill, then one token a step, with transformers' own cache: the same loop for both peers."""
    cache, mask = DynamicCache(config=model.config), torch.ones_like(ids)
    while True:
        with torch.inference_mode():
            out = model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, logits_to_keep=1)
        ids = out.logits[:, -1:].argmax(-1)
        mask = torch.cat([mask, mask.new_ones(1, 1)], dim=1)
        yield


def against_peft(base: TextBase, rounds: int) -> dict[str, tuple[float, float]]:
    """Median seconds of PEFT's and of the live forward pass with one adapter, in turns: prefill of the prompt, one decoding step."""
    entry = next(entry for entry in library.builtin() if entry.name == ADAPTERS[0])
    plain = AutoModelForCausalLM.from_pretrained(base.folder, dtype=base.dtype).to(base.device)
    peft = PeftModel.from_pretrained(plain, entry.path, autocast_adapter_dtype=False).eval()
    pool = pool_of(base, [Variant("one", Weighting(((entry.key, 1.0),)))])
    live = Live(base.model, pool)
    live.set_rows(pool.row_weights([Weighting(((entry.key, 1.0),))]))
    ids = torch.tensor([encode(base, PROMPT)], device=base.device)
    found: dict[str, tuple[list[float], list[float]]] = {"prefill": ([], []), "decoding step": ([], [])}
    # Both run the model as it is, without the packed weights that only this project has.
    steps = decoding(peft, ids), decoding(base.model, ids)

    def step(which: int, work: Iterator[None]) -> float:
        if which == 0:
            return seconds(lambda: next(work))
        return seconds(lambda: entered(live, work))

    for work, which in ((steps[0], 0), (steps[1], 1)):
        step(which, work)
    for turn in range(rounds):
        for which in (0, 1) if turn % 2 else (1, 0):
            model = (peft, base.model)[which]
            if turn % 8 == 0:
                found["prefill"][which].append(step(which, decoding(model, ids)))
            found["decoding step"][which].append(step(which, steps[which]))
    return {name: (median(a), median(b)) for name, (a, b) in found.items()}


def entered(live: Live, work: Iterator[None]) -> None:
    """One step with the adapter attached before and detached after it, as generation does."""
    with live:
        next(work)


def main() -> int:
    """Measures, prints, and returns 1 where a claim does not hold."""
    parser = parser_for("live", __doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of the batch comparison")
    parser.add_argument("--steps", type=int, default=96, help="of the comparison with PEFT")
    chosen = parser.parse_args()
    base = load_base(BUILTIN)
    together, alone = six_in_one_batch(base, chosen.rounds)
    pairs = against_peft(base, chosen.steps)
    rows = [
        [
            f"six variants, {TOKENS} tokens: one batch vs. one after another",
            f"{together:.2f} s",
            f"{alone:.2f} s",
            f"{alone / together:.2f} × faster",
        ]
    ]
    rows += [
        [
            f"one adapter, {name}: live vs. PEFT",
            f"{1000 * live:.1f} ms",
            f"{1000 * peft:.1f} ms",
            f"{live / peft:.2f} of PEFT's time",
        ]
        for name, (peft, live) in pairs.items()
    ]
    text = table(["measured in one run, medians", "Brickyard", "peer", "ratio"], rows) + f"\n\n{machine()}"
    missed = (
        [f"the batch is only {alone / together:.2f} times faster, not {FASTER:g}"] if alone < FASTER * together else []
    )
    missed += [
        f"live {name} takes {live / peft:.2f} of PEFT's time"
        for name, (peft, live) in pairs.items()
        if live > OVERHEAD * peft
    ]
    return finish("live", text, missed, chosen.write)


if __name__ == "__main__":
    sys.exit(main())
