"""Samples as tensors, whole and in parts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Samples as tensors.

    Attributes:
        inputs: arguments of the base's forward pass; tensors have a row for each sample.
        prompt: which tokens the gates read, (rows, tokens); None for every place of an image.
        targets: what the loss needs, a row for each sample.
    """

    inputs: dict[str, object]
    prompt: Bool[Tensor, "rows tokens"] | None
    targets: Tensor

    def part(self, rows: slice) -> Batch:
        """Some of the samples."""
        inputs = {key: value[rows] if isinstance(value, Tensor) else value for key, value in self.inputs.items()}
        return Batch(inputs, None if self.prompt is None else self.prompt[rows], self.targets[rows])

    def to(self, device: torch.device) -> Batch:
        """The samples on a device."""
        inputs = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in self.inputs.items()}
        return Batch(inputs, None if self.prompt is None else self.prompt.to(device), self.targets.to(device))

    def __len__(self) -> int:
        return len(self.targets)


def parts(batch: Batch, size: int) -> Iterator[Batch]:
    """A batch in parts of at most so many samples."""
    for start in range(0, len(batch), size):
        yield batch.part(slice(start, start + size))
