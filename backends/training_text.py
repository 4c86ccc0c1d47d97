"""What gates on a language model learn from: prompts with their answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backends.bases import TextBase
from backends.decode import pad_left, read_by_gates
from backends.rows import ASSETS, HELD_OUT, read_rows, rows_file
from backends.score import Example, encode_row
from lego.errors import AdapterError
from mole.batch import Batch
from mole.losses import IGNORED, answer_loss
from mole.recipe import GateRecipe


class TextSamples:
    """The rows of a recipe as tokens; see `backends.training.Samples`."""

    def __init__(self, base: TextBase, recipe: GateRecipe, folder: Path) -> None:
        """Read the rows.

        Raises:
            AdapterError: when rows are missing, malformed or too long, or a file is not the one whose hash the recipe gives.
        """
        self.base, self.model = base, base.model
        self.sets, self.data = [], []
        for data in recipe.data:
            path = rows_file(data.rows, folder)
            found = read_rows(path, data.split, without=None if data.split else HELD_OUT)
            if data.sha256 not in (None, found.sha256):
                what = f"has changed: its SHA-256 is {found.sha256}, the recipe says {data.sha256}"
                raise AdapterError(what, path, "Take the file that was meant, or leave sha256 out of the recipe.")
            self.sets.append([encode_row(base, number, row, True, None) for number, row in enumerate(found.rows)])
            place = data.rows if path.parent == ASSETS else str(path)
            self.data.append(data.model_copy(update={"rows": place, "sha256": found.sha256}))

    def batch(self, chosen: Sequence[Example], draw: str) -> Batch:
        """As `text_batch`; nothing about it is random."""
        return text_batch(self.base, chosen)

    def loss(self, out: Any, targets: Tensor) -> Tensor:
        """As `text_loss`."""
        return text_loss(out, targets)

    def middling(self) -> list[Example]:
        """One of middling length, twice."""
        examples = sorted(
            (example for rows in self.sets for example in rows), key=lambda e: len(e.prompt) + len(e.answer)
        )
        return [examples[len(examples) // 2]] * 2

    def look(self) -> object:
        """A pass over a few tokens."""
        return self.model(torch.tensor([self.sets[0][0].prompt[:4]], device=self.base.device))


def text_batch(base: TextBase, examples: Sequence[Example]) -> Batch:
    """Prompts with their answers: the gates read the prompts, the loss the answers."""
    ids, mask = pad_left([example.prompt + example.answer[:-1] for example in examples], base.device)
    kept = max(len(example.answer) for example in examples)
    labels = torch.full((len(examples), kept), IGNORED, device=base.device)
    for row, example in enumerate(examples):
        labels[row, -len(example.answer) :] = torch.tensor(example.answer, device=base.device)
    inputs: Mapping[str, Any] = {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": (mask.cumsum(-1) - 1).clamp_min(0),
        "use_cache": False,
        "logits_to_keep": kept,
    }
    known = {key: value for key, value in inputs.items() if key in base.accepts}
    return Batch(known, read_by_gates(mask, [len(example.answer) - 1 for example in examples]), labels)


def text_loss(out: Any, labels: Tensor) -> Tensor:
    """`answer_loss` of a language model's output."""
    return answer_loss(out.logits[:, -labels.shape[1] :], labels)
