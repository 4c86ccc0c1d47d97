"""A gate training as data: LoRAs, base, rows, gates and steps. What a person writes and what trained gates carry."""

from __future__ import annotations

from typing import Any

from pydantic import Field, ValidationInfo, model_validator

from lego.recipe import Document, Part, Source
from mole.gate import GateConfig
from mole.train import TrainConfig


class Rows(Part):
    """Samples: a built-in task or a JSONL file of prompts and answers. A bare string stands for ``rows``."""

    rows: str = Field(description="a built-in task's name, or the path of a JSONL file, relative to the recipe's")
    split: str | None = Field(
        default=None, description="only the rows of this split; all that are not held out unless given"
    )
    share: float = Field(default=1.0, gt=0, le=1e6, description="how often, relative to the others")
    sha256: str | None = Field(default=None, description="the file's SHA-256, written by a training")

    @model_validator(mode="before")
    @classmethod
    def from_string(cls, value: Any) -> Any:
        """A bare string as a task or file."""
        return {"rows": value} if isinstance(value, str) else value


class GateRecipe(Document):
    """Everything that a training needs to be done again."""

    brickyard: str | None = Field(default=None, description="the version that made it, as a string")
    base: str | None = Field(
        default=None, description="a built-in base, a hub id or a folder; the built-in unless given"
    )
    sources: list[Source] = Field(min_length=1, description="a list of at least one path, hub id or {path: …}")
    data: list[Rows] = Field(min_length=1, description="a list of built-in tasks, JSONL files or {rows: …, share: …}")
    gates: GateConfig = Field(default=GateConfig(), description="{granularity: …, reads: …, normalise: …}")
    training: TrainConfig = Field(default=TrainConfig(), description="{steps: …, batch: …, alpha: …, seed: …}")

    @model_validator(mode="after")
    def no_weights(self, info: ValidationInfo) -> GateRecipe:
        """Refuse weights: the gates weigh."""
        if weighed := next((source for source in self.sources if source.weight != 1.0), None):
            raise ValueError(f"gives {weighed} a weight, but gates decide that; leave it out")
        return self
