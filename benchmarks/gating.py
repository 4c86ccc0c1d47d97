"""``python -m benchmarks.gating``: what gates cost, on the built-in base with four of its LoRAs of rank 8.

Three claims, each a ratio against a peer measured in the same run: gated generation takes at most 1.35 times the bare base's time a
token; at most a third of PEFT's X-LoRA; a training step of the gates at most 1.5 times PEFT's step for a single LoRA of rank 8.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import torch
from peft import LoraConfig, XLoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from backends import library
from backends.bases import BUILTIN, TextBase, load_base
from backends.text import Sampling, Variant, generate
from backends.training import Training
from backends.training_text import text_loss
from backends.variants import encode
from benchmarks.clock import seconds
from benchmarks.report import finish, machine, parser_for, table
from mole.recipe import GateRecipe

PROMPT = "Write a short story about a lighthouse keeper and the sea."
LORAS = ("kind", "past-tense", "language", "plural")
TOKENS = 48
AGAINST_BASE, AGAINST_XLORA, AGAINST_LORA = 1.35, 1 / 3, 1.5


def recipe(steps: int) -> GateRecipe:
    """Gates over the four LoRAs, as they come."""
    document = {"sources": list(LORAS), "data": list(LORAS), "training": {"steps": steps}}
    return GateRecipe.check(document, "benchmark")


def entries() -> list[library.Entry]:
    """The four LoRAs."""
    found = {entry.name: entry for entry in library.builtin()}
    return [found[name] for name in LORAS]


def training_step(base: TextBase, rounds: int) -> tuple[Training, float, float]:
    """Trained gates; median seconds of their step, and of PEFT's with a fresh LoRA of rank 8 on the same batches."""
    training = Training(base, [entry.key for entry in entries()], recipe(rounds + 1))
    model = AutoModelForCausalLM.from_pretrained(base.folder, dtype=base.dtype).to(base.device)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    peft: Any = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=targets))
    optimizer = torch.optim.AdamW([p for p in peft.parameters() if p.requires_grad], lr=2e-4)

    def step(number: int) -> None:
        batch = training.trainer.batch_of(number, training.recipe.training.batch)
        loss = text_loss(peft(**batch.inputs), batch.targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(peft.parameters(), 1.0)
        optimizer.step()

    steps = training.run()
    next(steps)
    step(0)
    ours, theirs = [], []
    for number in range(rounds):
        theirs.append(seconds(lambda n=number: step(n + 1)))
        ours.append(seconds(lambda: next(steps)))
    return training, median(ours), median(theirs)


def generation(base: TextBase, variants: dict[str, Variant], rounds: int) -> dict[str, float]:
    """Median seconds of each variant's text of exactly `TOKENS` tokens, in turns."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    ends, base.model.generation_config.eos_token_id = base.model.generation_config.eos_token_id, -1
    try:
        for turn in range(rounds + 1):
            for name, variant in variants.items():
                took = seconds(lambda v=variant: list(generate(base, [v], [PROMPT], Sampling(max_new_tokens=TOKENS))))
                times[name] += [took] if turn else []
    finally:
        base.model.generation_config.eos_token_id = ends
    return {name: median(found) for name, found in times.items()}


def xlora(base: TextBase, rounds: int) -> float:
    """Median seconds of PEFT's X-LoRA over the same LoRAs, for as many tokens."""
    model = AutoModelForCausalLM.from_pretrained(base.folder, dtype=base.dtype).to(base.device)
    model.config.use_cache = False
    config = XLoraConfig(
        task_type="CAUSAL_LM",
        hidden_size=model.config.hidden_size,
        layerwise_scalings=True,
        adapters={str(number): str(entry.path) for number, entry in enumerate(entries())},
    )
    peft: Any = get_peft_model(model, config).eval()
    ids = torch.tensor([encode(base, PROMPT)], device=base.device)
    wanted = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False}

    def run() -> None:
        with torch.inference_mode():
            made = peft.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **wanted)
        assert made.shape[1] == ids.shape[1] + TOKENS, "X-LoRA ended early"

    return median([seconds(run) for _ in range(rounds + 1)][1:])


def main() -> int:
    """Measures, prints, and returns 1 where a claim does not hold."""
    parser = parser_for("gating", __doc__)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    base = load_base(BUILTIN)
    training, step, peft_step = training_step(base, options.rounds)
    with tempfile.TemporaryDirectory() as scratch:
        training.save(Path(scratch) / "gates")
        gated = training.add("benchmark")
        times = generation(
            base, {"base": Variant("base"), "gated": Variant("gated", gated.weighting())}, options.rounds
        )
        theirs = xlora(base, max(1, options.rounds // 2))
    rows, missed = [], []
    for label, ours, peer, limit in (
        (f"gates over four LoRAs, {TOKENS} tokens vs. the bare base", times["gated"], times["base"], AGAINST_BASE),
        (f"gates over four LoRAs, {TOKENS} tokens vs. PEFT's X-LoRA", times["gated"], theirs, AGAINST_XLORA),
        ("training step of the gates vs. PEFT's of one LoRA, rank 8", step, peft_step, AGAINST_LORA),
    ):
        rows.append([label, f"{ours:.2f} s", f"{peer:.2f} s", f"{ours / peer:.2f} of its time"])
        missed += [f"{label}: {ours / peer:.2f}, not {limit:.2f}"] if ours > limit * peer else []
    text = table(["measured in one run, medians", "Brickyard", "peer", "ratio"], rows) + f"\n\n{machine()}"
    return finish("gating", text, missed, options.write)


if __name__ == "__main__":
    sys.exit(main())
