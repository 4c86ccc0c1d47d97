"""The gates that ship, against what their LoRAs are for: each kind of prompt is given to the LoRA that knows it."""

from __future__ import annotations

import pytest

from backends import bases, gates, library
from backends.gated import choices

PROMPTS = {
    "text": {
        "past-tense": ["What is the past tense of 'carry'? Answer with one word."],
        "sentiment": ["Is this review positive or negative? a dull, lifeless film"],
        "language": ["Which language is this phrase? guten Morgen"],
    },
    "image": {
        "animals": ["a crab", "a goat", "a hamster"],
        "vehicles": ["a helicopter", "a police car"],
        "ink-style": ["a red apple"],
    },
}
BASES = {"text": bases.BUILTIN, "image": bases.IMAGE}


@pytest.mark.parametrize("kind", ["text", "image"])
def test_each_prompt_goes_to_the_lora_that_knows_it(kind: str) -> None:
    base, names = bases.load_base(BASES[kind]), {entry.key: entry.name for entry in library.builtin(kind)}
    (shipped,) = gates.builtin(kind)
    assert {names[key] for key in shipped.experts} == set(PROMPTS[kind])
    for right, prompts in PROMPTS[kind].items():
        for prompt in prompts:
            shares = choices(base, shipped, [prompt]).shares.mean(dim=0)
            most = shipped.experts[int(shares.argmax())]
            assert names[most] == right, prompt
            assert shares.max() > 0.45, prompt
