"""Train one built-in adapter: PEFT's LoRA, AdamW, warm-up and cosine, fp32, the loss on the answers' tokens only."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from assets.build.score import Encoded, answer_logits, encode, score

BASE_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
LINEAR = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
WARMUP, CHECKPOINT_EVERY = 10, 50


@dataclass(frozen=True)
class Spec:
    """How one adapter is trained. ``seed`` sets the start of A and the order of the rows."""

    name: str
    title: str
    rank: int
    alpha: int
    seed: int
    steps: int
    rate: float = 1e-3
    targets: tuple[str, ...] = LINEAR
    rslora: bool = False
    batch: int = 8
    note: str = ""


PAIR = "past-tense and plural are trained from the same seed on purpose: their A matrices start equal and stay close."

# Every adapter has its own seed, as adapters from the wild do, but for the one labelled pair.
SPECS = {
    spec.name: spec
    for spec in (
        Spec("sentiment", "Sentiment of a review", 4, 8, seed=11, steps=160),
        Spec("kind", "Kind of thing", 8, 16, seed=23, steps=220),
        Spec("past-tense", "Past tense", 8, 8, seed=37, steps=220, rate=1.5e-3, note=PAIR),
        Spec("plural", "Plural", 8, 8, seed=37, steps=200, rate=1.5e-3, note=PAIR),
        Spec("language", "Language of a phrase", 8, 16, seed=41, steps=180),
        Spec("french", "English to French", 16, 16, seed=53, steps=240, rate=1.5e-3, batch=16),
        Spec("king-james", "King James style", 16, 32, seed=67, steps=110, targets=ATTENTION),
        Spec("devils-dictionary", "Devil's Dictionary", 8, 8, seed=79, steps=110, rate=7e-4, rslora=True),
    )
}


def schedule(rows: int, steps: int, batch: int, seed: int) -> list[list[int]]:
    """Row numbers of every batch, from shuffled epochs."""
    rng = random.Random(seed)
    order: list[int] = []
    while len(order) < steps * batch:
        order += rng.sample(range(rows), rows)
    return [order[at : at + batch] for at in range(0, steps * batch, batch)]


def _rate(spec: Spec, step: int) -> float:
    """Linear warm-up, then half a cosine down to nothing."""
    if step < WARMUP:
        return spec.rate * (step + 1) / WARMUP
    return spec.rate * 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (spec.steps - WARMUP)))


def _write(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write safetensors under another name, then rename."""
    scratch = path.with_suffix(".part")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, scratch, metadata)
    scratch.chmod(0o644)  # safetensors writes files that only their owner may read
    os.replace(scratch, path)


class Run:
    """One training run that can be interrupted at any step and continued from its last checkpoint."""

    def __init__(self, spec: Spec, base: Any, tokenizer: Any, work: Path) -> None:
        torch.manual_seed(spec.seed)  # PEFT draws A from torch's generator
        config = LoraConfig(
            r=spec.rank, lora_alpha=spec.alpha, target_modules=list(spec.targets), use_rslora=spec.rslora,
            lora_dropout=0.0, bias="none", task_type="CAUSAL_LM",
        )  # fmt: skip
        self.spec, self.tokenizer = spec, tokenizer
        self.checkpoint = work / f"{spec.name}.checkpoint.safetensors"
        self.model = get_peft_model(base, config)
        self.model.peft_config["default"].base_model_name_or_path = BASE_MODEL
        self.parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=spec.rate, weight_decay=0.0)
        self.step, self.seconds = 0, 0.0
        self.losses: list[float] = []

    def save(self) -> None:
        """Weights, both Adam moments and the losses so far."""
        tensors = {}
        for name, parameter in self.parameters.items():
            tensors[name] = parameter.detach()
            tensors |= {f"{name}.{key}": self.optimizer.state[parameter][key] for key in ("exp_avg", "exp_avg_sq")}
        state = {"step": self.step, "seconds": self.seconds, "losses": self.losses, "spec": asdict(self.spec)}
        _write(tensors, self.checkpoint, {"state": json.dumps(state)})

    def resume(self) -> None:
        """Continue from the checkpoint, if there is one of the same specification."""
        if not self.checkpoint.exists():
            return
        with safe_open(self.checkpoint, "pt") as file:
            state = json.loads(file.metadata()["state"])
        if state["spec"] != json.loads(json.dumps(asdict(self.spec))):
            return
        tensors = load_file(self.checkpoint)
        self.step, self.seconds, self.losses = state["step"], state["seconds"], state["losses"]
        for name, parameter in self.parameters.items():
            parameter.data.copy_(tensors[name])
            moments = {key: tensors[f"{name}.{key}"] for key in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[parameter] = {"step": torch.tensor(float(self.step)), **moments}

    def train(self, rows: Sequence[Encoded]) -> Iterator[tuple[int, float]]:
        """Train to the end, yielding (steps done, loss of this step)."""
        batches = schedule(len(rows), self.spec.steps, self.spec.batch, self.spec.seed)
        self.model.train()
        while self.step < self.spec.steps:
            began = time.perf_counter()
            self.optimizer.param_groups[0]["lr"] = _rate(self.spec, self.step)
            logits, target = answer_logits(self.model, [rows[i] for i in batches[self.step]])
            loss = F.cross_entropy(logits, target)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.step += 1
            self.seconds += time.perf_counter() - began
            self.losses.append(round(loss.item(), 4))
            if self.step % CHECKPOINT_EVERY == 0:
                self.save()
            yield self.step, loss.item()

    def export(self, folder: Path) -> None:
        """Write the adapter as a PEFT folder in fp16, and load what was written, so that it is what gets scored."""
        scratch = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        self.model.peft_config["default"].inference_mode = True
        self.model.peft_config["default"].save_pretrained(scratch)
        config = json.loads((scratch / "adapter_config.json").read_text(encoding="utf-8"))
        config["target_modules"] = list(self.spec.targets)  # PEFT keeps a set, whose order differs from run to run
        (scratch / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        state = get_peft_model_state_dict(self.model, save_embedding_layers=False)
        tensors = {name: tensor.half() for name, tensor in state.items()}
        _write(tensors, scratch / "adapter_model.safetensors", {"format": "pt"})
        set_peft_model_state_dict(self.model, {name: tensor.float() for name, tensor in tensors.items()})
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)


@torch.no_grad()
def greedy(model: Any, tokenizer: Any, prompt: str, length: int = 64) -> str:
    """The model's greedy answer to one prompt."""
    row = encode(tokenizer, {"prompt": prompt, "answer": ""})
    ids = torch.tensor([row.ids[: row.start]], device=model.device)
    out = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=length, do_sample=False,
        pad_token_id=tokenizer.eos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return tokenizer.decode(out[0, row.start :], skip_special_tokens=True)


def make(spec: Spec, rows: Sequence[dict[str, str]], base: Any, tokenizer: Any, work: Path, folder: Path) -> dict:
    """Train, export and score one adapter; its record (scores, losses, an example) is ``training.json`` beside it."""
    held_out = [row for row in rows if row["split"] == "held_out"]
    encoded = [encode(tokenizer, row) for row in held_out]
    example = {"prompt": held_out[0]["prompt"], "answer": held_out[0]["answer"]}
    before = score(base, encoded)
    example["before"] = greedy(base, tokenizer, example["prompt"])
    print(f"{spec.name}: base {before}", flush=True)
    run = Run(spec, base, tokenizer, work)
    run.resume()
    try:
        for step, loss in run.train([encode(tokenizer, row) for row in rows if row["split"] == "train"]):
            if step % 10 == 0:
                pace = f"{run.seconds / step:.2f} s/step"
                print(f"{spec.name}: step {step}/{spec.steps} loss {loss:.3f} {pace}", flush=True)
        run.save()
        run.export(folder)
        after = score(run.model, encoded)
        example["after"] = greedy(run.model, tokenizer, example["prompt"])
    finally:
        run.model.unload()
    record = {
        "before": before, "after": after, "example": example, "heldout_rows": len(held_out), "steps": run.step,
        "batch": spec.batch, "rate": spec.rate, "seconds_per_step": round(run.seconds / run.step, 2), "loss": run.losses[9::10],
    }  # fmt: skip
    (folder / "training.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    run.checkpoint.unlink()
    print(f"{spec.name}: done {after}", flush=True)
    return record
