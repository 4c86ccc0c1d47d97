"""Gates beside PEFT's routers, X-LoRA and Arrow, on the same base, LoRAs, rows and steps.

    python -m benchmarks.routers [--write] [--as-it-is]

Three LoRAs of rank 8, since Arrow takes equal ranks only. X-LoRA's classifier reads a pass without LoRAs and weighs every layer's
LoRAs token by token; it learns from the very batches of the gates, at the learning rate that leaves the least loss. Arrow learns
nothing. Times are the processor's, on one thread, so that neighbours on the machine count little. Results are kept in
``results/routers.json`` as they come.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from statistics import mean
from typing import Any

import torch
from peft import ArrowConfig, XLoraConfig, create_arrow_model, get_peft_model
from transformers import AutoModelForCausalLM

from backends import bases, library, text
from backends.score import Example, encode_row
from backends.training import Training
from backends.training_text import text_batch, text_loss
from backends.variants import Variant, encode
from benchmarks.kept import Kept
from benchmarks.report import machine, parser_for, table, write_into_readme
from mole.batch import Batch
from mole.recipe import GateRecipe

LORAS = ("kind", "past-tense", "language")
ROWS, STEPS, TOKENS, BATCH = 50, 30, 32, 16
RATES = (1e-4, 1e-3, 3e-3, 1e-2)
PROMPT = "Write a short story about a lighthouse keeper and the sea."

Result = dict[str, float]


class Bench:
    """The base, its LoRAs and their rows."""

    def __init__(self) -> None:
        self.base = bases.load_base(bases.BUILTIN)
        found = {entry.name: entry for entry in library.builtin()}
        self.entries = [found[name] for name in LORAS]
        self.rows = {name: [row for row in text.tasks()[name] if row["split"] == "held_out"][:ROWS] for name in LORAS}
        self.kept = Kept("routers", {entry.name: entry.key for entry in self.entries}, self.rows)
        document = {"sources": list(LORAS), "data": list(LORAS), "training": {"steps": STEPS}}
        self.training = Training(self.base, [entry.key for entry in self.entries], GateRecipe.check(document, "bench"))

    def batch(self, step: int) -> Batch:
        """The samples of a step, the same for every router that learns."""
        return self.training.trainer.batch_of(step, self.training.recipe.training.batch)

    def fresh(self) -> Any:
        """The base again, for PEFT to change."""
        return AutoModelForCausalLM.from_pretrained(self.base.folder, dtype=self.base.dtype)

    def exact(self, model: Any) -> Result:
        """Share of rows that a model of PEFT's answers exactly, by task: teacher-forced, as `backends.score` does."""
        found = {}
        for name, rows in self.rows.items():
            examples = [encode_row(self.base, number, row, True, None) for number, row in enumerate(rows)]
            hits: list[bool] = []
            for start in range(0, len(examples), BATCH):
                hits += answered(model, self.base, examples[start : start + BATCH])
            found[name] = mean(hits)
        return found

    def tokens_per_second(self, generate: Callable[[torch.Tensor], object]) -> float:
        """Of one text, from a function that makes `TOKENS` tokens after the ids."""
        ids = torch.tensor([encode(self.base, PROMPT)])
        start = time.process_time()
        with torch.inference_mode():
            generate(ids)
        return TOKENS / (time.process_time() - start)

    def gates(self) -> Result:
        """MoLE as it comes."""
        start = time.process_time()
        list(self.training.run())
        took = time.process_time() - start
        gated = Variant("gated", self.training.add("benchmark").weighting())
        found = {}
        for name, rows in self.rows.items():
            *_, last = text.score(self.base, [gated], rows)
            found[name] = last.exact[0]
        ends, self.base.model.generation_config.eos_token_id = self.base.model.generation_config.eos_token_id, -1
        try:
            sampling = text.Sampling(max_new_tokens=TOKENS)
            rate = self.tokens_per_second(lambda _: list(text.generate(self.base, [gated], [PROMPT], sampling)))
        finally:
            self.base.model.generation_config.eos_token_id = ends
        count = self.training.gates.parameter_count
        return {**found, "parameters": count, "seconds": took, "tokens per second": rate}

    def arrow(self, top: int) -> Result:
        """Arrow, which routes by the LoRAs' first singular vectors."""
        paths = [str(entry.path) for entry in self.entries]
        model = create_arrow_model(self.fresh(), paths, ArrowConfig(top_k=top, rng_seed=0)).eval()
        rate = self.tokens_per_second(lambda ids: model.generate(input_ids=ids, **lengths(ids)))
        return {**self.exact(model), "parameters": 0, "seconds": 0, "tokens per second": rate}

    def xlora(self, lr: float) -> Result:
        """X-LoRA's classifier, trained."""
        model = self.fresh()
        model.config.use_cache = False
        adapters = {str(number): str(entry.path) for number, entry in enumerate(self.entries)}
        config = XLoraConfig(
            task_type="CAUSAL_LM", hidden_size=model.config.hidden_size, layerwise_scalings=True, adapters=adapters
        )
        torch.manual_seed(0)
        peft: Any = get_peft_model(model, config)
        learned = [parameter for parameter in peft.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(learned, lr=lr, weight_decay=0.0)
        start, losses = time.process_time(), []
        for step in range(STEPS):
            batch = self.batch(step)
            loss = text_loss(peft(**batch.inputs), batch.targets)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learned, 1.0)
            optimizer.step()
            losses.append(float(loss))
        took = time.process_time() - start
        peft.eval()
        rate = self.tokens_per_second(lambda ids: peft.generate(input_ids=ids, **lengths(ids)))
        facts = {
            "parameters": sum(parameter.numel() for parameter in learned),
            "seconds": took,
            "tokens per second": rate,
        }
        return {**self.exact(peft), **facts, "loss": mean(losses[-10:])}


def answered(model: Any, base: bases.TextBase, examples: list[Example]) -> list[bool]:
    """Which examples a model answers exactly."""
    batch = text_batch(base, examples)
    with torch.inference_mode():
        logits = model(**batch.inputs).logits[:, -batch.targets.shape[1] :]
    return [
        row[-len(example.answer) :].argmax(-1).tolist() == example.answer
        for row, example in zip(logits, examples, strict=True)
    ]


def lengths(ids: torch.Tensor) -> dict[str, Any]:
    """Generation of exactly `TOKENS` tokens."""
    mask = torch.ones_like(ids)
    return {"attention_mask": mask, "max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False}


def main() -> None:
    """Measure what is missing and print the table."""
    parser = parser_for("routers", __doc__)
    parser.add_argument("--as-it-is", action="store_true", help="measure nothing, show what is there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench()
    if not options.as_it_is:
        wanted: dict[str, Callable[[], Result]] = {
            "MoLE, a gate per block": bench.gates,
            "Arrow, top 3": lambda: bench.arrow(3),
            "Arrow, top 1": lambda: bench.arrow(1),
        }
        wanted |= {f"X-LoRA, lr {lr:g}": lambda lr=lr: bench.xlora(lr) for lr in RATES}  # type: ignore[misc]
        for label, measure in wanted.items():
            if label not in bench.kept.known():
                bench.kept.keep(label, measure())
                print(label, bench.kept.known()[label], file=sys.stderr, flush=True)
    found: dict[str, Result] = bench.kept.known()
    rates = [label for label in found if label.startswith("X-LoRA")]
    worse = {label for label in rates if found[label]["loss"] > min(found[other]["loss"] for other in rates)}
    rows = [
        [
            label,
            *(f"{100 * result[name]:.1f}" for name in LORAS),
            f"**{100 * mean(result[name] for name in LORAS):.1f}**",
            f"{result['parameters']:,.0f}",
            f"{result['seconds']:.0f} s",
            f"{result['tokens per second']:.1f}",
        ]
        for label, result in found.items()
        if label not in worse
    ]
    made = table(["", *LORAS, "mean", "trained numbers", "training", "tokens per second"], rows)
    note = f"Exact match in % on {ROWS} held-out rows a task; three LoRAs of rank 8, {STEPS} steps of the same batches; one processor."
    print(f"{made}\n\n{note} {machine()}.")
    if options.write:
        write_into_readme("routers", f"{made}\n\n{note}")


if __name__ == "__main__":
    main()
