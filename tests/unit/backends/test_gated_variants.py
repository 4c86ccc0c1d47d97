"""Gated variants in one batch with others against MoLE's equations with the whole text fed anew for every token."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from backends import decode as decoding
from backends import gates as store
from backends import library
from backends.bases import TextBase
from backends.decode import end_tokens
from backends.gates import GateEntry
from backends.score import score
from backends.text import Grid, Sampling, Variant, generate
from backends.variants import encode, pool_of
from lego import AdapterError
from mole.gate import GateConfig, Gates
from mole.live import Weighting
from mole.recipe import GateRecipe
from mole.sites import find_sites
from tests.naive_gates import KINDS, Mixture, Naive, randomise
from tests.tiny import tiny_base, tiny_entry

PROMPTS = ["Hello", "a", "one two three"]
GREEDY = Sampling(max_new_tokens=10, chat=False)
DRAWN = replace(GREEDY, temperature=0.9, top_p=0.95, seed=7)


@dataclass
class Scene:
    """A base, three LoRAs, two sets of gates over them, and variants."""

    base: TextBase
    keys: list[str]
    block: GateEntry
    module: GateEntry
    variants: list[Variant]

    def naive(self, variant: Variant) -> Naive:
        """The variant by the equations."""
        given, adapters = variant.weighting, {key: library.get(key) for key in self.keys}
        gates = None if given.gates is None else store.loaded(self.base, given.gates)
        return Naive(self.base.model, Mixture(adapters, dict(given.adapters), gates, given.masked, given.muted))

    def greedy(self, variant: Variant, prompt: str) -> str:
        """The variant's text for a prompt, alone."""
        ids = encode(self.base, prompt, chat=False)
        made = self.naive(variant).greedy(ids, GREEDY.max_new_tokens, end_tokens(self.base))
        return self.base.tokenizer.decode(made)


def trained(base: TextBase, keys: list[str], seed: int, **config: Any) -> GateEntry:
    """Random gates, saved as trained ones are."""
    made = GateConfig(**config)
    pool = pool_of(base, [Variant("all", Weighting(tuple((key, 1.0) for key in keys)))])
    sites = find_sites(base.model, pool.modules, made.granularity, lambda: base.model(torch.tensor([[1, 2]])))
    gates = randomise(Gates.fresh(made, keys, sites, pool), seed)
    recipe = GateRecipe.check({"sources": keys, "data": ["rows"], "gates": config}, "test")
    return store.add_trained(f"gates {seed}", gates, base, recipe, {"step": torch.tensor(seed)})


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setenv("BRICKYARD_HOME", str(tmp_path / "home"))
    base = tiny_base()
    base.fingerprint = "a" * 64
    keys = [
        tiny_entry(tmp_path / name, seed, rank, alpha=rank, kinds=kinds, size=0.3).key
        for name, (seed, rank, kinds) in KINDS.items()
    ]
    block, module = (
        trained(base, keys, 1),
        trained(base, keys, 2, granularity="module", reads="hidden", base_expert=True),
    )
    muted = frozenset((keys[0], "model.layers.0.self_attn.q_proj", unit) for unit in range(3))
    variants = [
        Variant("base"),
        Variant("gated", block.weighting()),
        Variant("first", Weighting(((keys[0], 1.0),))),
        Variant("masked", block.weighting((keys[0], keys[1]))),
        Variant("other gates", module.weighting((keys[2],))),
        Variant("muted", replace(block.weighting(), muted=muted)),
    ]
    return Scene(base, keys, block, module, variants)


def last(grids: Iterator[Grid]) -> Grid:
    return list(grids)[-1]


def watch_forward(
    base: TextBase, monkeypatch: pytest.MonkeyPatch, most: Callable[[int], int] | None = None
) -> list[int]:
    """Rows of every forward pass; one with more than ``most(pass)`` runs out of memory."""
    forward, widths = base.model.forward, []

    def watched(input_ids: torch.Tensor, **named: Any) -> Any:
        fails = most is not None and len(input_ids) > most(len(widths))
        widths.append(-len(input_ids) if fails else len(input_ids))
        if fails:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(input_ids=input_ids, **named)

    base.accepts  # noqa: B018 - remembered before the signature is hidden
    monkeypatch.setattr(base.model, "forward", watched)
    return widths


def hooks(base: TextBase) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in base.model.modules())


def test_greedy_texts_are_those_of_the_equations(scene: Scene) -> None:
    grid = last(generate(scene.base, scene.variants, PROMPTS, GREEDY))
    for v, variant in enumerate(scene.variants):
        if variant.weighting.gates is None:
            continue
        for p, prompt in enumerate(PROMPTS):
            assert grid.texts[v][p] == scene.greedy(variant, prompt), (variant.name, prompt)
    assert len({text for row in grid.texts for text in row}) > 12, "the variants must differ for this to tell anything"
    assert hooks(scene.base) == 0


def test_rows_that_end_early_leave_the_batch(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    free = last(generate(scene.base, scene.variants, PROMPTS, GREEDY))
    common = max("abcdefghijklmnopqrstuvwxyz", key="".join(text for row in free.texts for text in row).count)
    stop = scene.base.tokenizer(common)["input_ids"][0]
    scene.base.model.generation_config.eos_token_id = [scene.base.tokenizer.eos_token_id, stop]
    widths = watch_forward(scene.base, monkeypatch)
    ended = last(generate(scene.base, scene.variants, PROMPTS, GREEDY))
    assert widths[0] == 18
    assert 0 < widths[-1] < 14
    assert [text for row in ended.texts for text in row] == [
        text.split(common)[0] for row in free.texts for text in row
    ]


@pytest.mark.parametrize("fails_at", [0, 5])
@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_gates_are_the_prompts_after_memory_ran_out(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, fails_at: int, sampling: Sampling
) -> None:
    whole = last(generate(scene.base, scene.variants, PROMPTS, sampling))
    widths = watch_forward(scene.base, monkeypatch, lambda step: 5 if step >= fails_at else 99)
    assert last(generate(scene.base, scene.variants, PROMPTS, sampling)).texts == whole.texts
    assert min(widths) < -5
    assert hooks(scene.base) == 0


def test_a_gated_text_does_not_depend_on_its_neighbours(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = last(generate(scene.base, scene.variants, PROMPTS, DRAWN))
    for v, variant in enumerate(scene.variants):
        assert last(generate(scene.base, [variant], PROMPTS, DRAWN)).texts[0] == grid.texts[v]
    monkeypatch.setattr(decoding, "rows_at_once", lambda base, tokens: 4)
    assert last(generate(scene.base, scene.variants, PROMPTS, DRAWN)).texts == grid.texts


def test_scores_are_those_of_the_equations(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompts begin alike, so plain variants share a prefix; gates must read it with the rest."""
    base, questions = scene.base, ["What is the past of go?", "What is the past of understand?", "What is it?"]
    ends, rows = {base.tokenizer.eos_token_id}, []
    for length, question in enumerate(questions, 1):
        made = scene.naive(scene.variants[1]).greedy(encode(base, question), length + 1, set())
        rows.append({"prompt": question, "answer": base.tokenizer.decode(made[:length])})
        ends.add(made[length])
    rows.append({"prompt": "What is the past of see?", "answer": "saw"})
    base.model.generation_config.eos_token_id = sorted(ends)
    alone = [scene.naive(variant) for variant in scene.variants]
    widths = watch_forward(base, monkeypatch)
    found = list(score(base, scene.variants, rows))[-1]
    assert found.finished
    for v, variant in enumerate(scene.variants):
        naive, nll, tokens = alone[v], 0.0, 0
        for number, row in enumerate(rows):
            prompt = encode(base, row["prompt"])
            answer = [*base.tokenizer(row["answer"])["input_ids"], base.tokenizer.eos_token_id]
            with torch.no_grad():
                logits = naive([*prompt, *answer[:-1]], len(prompt))[-len(answer) :]
            nll -= sum(float(line.log_softmax(-1)[token]) for line, token in zip(logits, answer, strict=True))
            tokens += len(answer)
            best = logits.argmax(-1).tolist()
            assert found.hits[v][number] == (best[:-1] == answer[:-1] and best[-1] in ends), (variant.name, number)
        assert found.nll[v] == pytest.approx(nll / tokens, rel=1e-4), variant.name
    assert found.exact[1] >= 0.5
    assert len(set(found.nll)) == len(scene.variants)
    assert widths.count(1) >= 2, "the plain variants' prefixes"
    assert all(math.isfinite(value) for value in found.nll)


def test_what_does_not_fit_is_refused(scene: Scene, tmp_path: Path) -> None:
    def text(variant: Variant, base: TextBase = scene.base) -> Grid:
        return last(generate(base, [variant], PROMPTS, GREEDY))

    with pytest.raises(AdapterError, match="there are no gates with this key"):
        text(Variant("gone", replace(scene.block.weighting(), gates="0123456789ab")))
    with pytest.raises(AdapterError, match="nobody: is not among the gates' experts"):
        text(Variant("unknown", scene.block.weighting(("nobody",))))
    with pytest.raises(AdapterError, match="every expert is masked"):
        text(Variant("none", scene.block.weighting(tuple(scene.keys))))
    text(Variant("the base expert is left", scene.module.weighting(tuple(scene.keys))))
    other = tiny_base(seed=1)
    other.info, other.fingerprint = replace(other.info, id="another"), "b" * 64
    with pytest.raises(AdapterError, match=r"gates-1: was trained on the base tiny \(aaaa.* not on another \(bbbb"):
        text(Variant("gated", scene.block.weighting()), other)
    assert hooks(scene.base) == hooks(other) == 0


def test_gates_over_loras_that_the_library_lacks(scene: Scene) -> None:
    config = scene.block.path / "gate_config.json"
    document = json.loads(config.read_text())
    document["experts"][1]["fingerprint"] = "e" * 64
    config.write_text(json.dumps(document))
    strange = store.add_folder(scene.block.path)
    with pytest.raises(AdapterError, match="eeeeeeeeeeee"):
        last(generate(scene.base, [Variant("gated", strange.weighting())], PROMPTS, GREEDY))
