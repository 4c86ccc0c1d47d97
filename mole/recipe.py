"""A gate training as data: LoRAs, base, rows, gates and steps. What a person writes and what trained gates carry."""

from __future__ import annotations

from typing import Any

from pydantic import Field, ValidationInfo, model_validator

from lego.recipe import Document, Part, Source
from mole.gate import GateConfig
from mole.train import TrainConfig


class Rows(Part):
    """Samples: a JSONL file of prompts and answers, or a folder of pictures with captions. A bare string stands for ``rows``."""

    rows: str = Field(
        description="the name of what ships, or the path of a JSONL file or folder, relative to the recipe's"
    )
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


class Guidance(Part):
    """Learning from captions alone: what gates draw is judged by a contrastive model (MoLE, arXiv 2404.13628, section 3.2)."""

    model: str | None = Field(
        default=None, description="a CLIP model, a hub id or a folder; the one that belongs to the base unless given"
    )
    steps: int = Field(default=8, ge=1, le=1000, description="denoising steps of a drawing")
    local: float = Field(default=1.0, ge=0, le=100, description="weight of the directional term")
    source: str = Field(default="", description="the caption from which the directional term starts")


class GateRecipe(Document):
    """Everything that a training needs to be done again."""

    brickyard: str | None = Field(default=None, description="the version that made it, as a string")
    base: str | None = Field(
        default=None, description="a built-in base, a hub id or a folder; the built-in unless given"
    )
    sources: list[Source] = Field(min_length=1, description="a list of at least one path, hub id or {path: …}")
    data: list[Rows] = Field(min_length=1, description="a list of built-in tasks, JSONL files or {rows: …, share: …}")
    gates: GateConfig = Field(default=GateConfig(), description="{granularity: …, reads: …, normalise: …}")
    guidance: Guidance | None = Field(
        default=None, description="{model: …, steps: …, local: …}: for pictures, learn from captions alone"
    )
    training: TrainConfig = Field(default=TrainConfig(), description="{steps: …, batch: …, alpha: …, seed: …}")

    @model_validator(mode="after")
    def no_weights(self, info: ValidationInfo) -> GateRecipe:
        """Refuse weights: the gates weigh."""
        if weighed := next((source for source in self.sources if source.weight != 1.0), None):
            raise ValueError(f"gives {weighed} a weight, but gates decide that; leave it out")
        if edited := next((source for source in self.sources if source.edits), None):
            raise ValueError(f"edits units of {edited}, but gates mix whole adapters; save the edited one first")
        return self

    def differs(self, other: GateRecipe) -> str | None:
        """The first thing that makes a training by ``other`` learn otherwise than by this one, for people; their length does not."""

        def told(recipe: GateRecipe) -> dict[str, object]:
            data = [(rows.sha256, rows.split, rows.share) for rows in recipe.data]  # wherever the files are
            guidance = recipe.guidance and recipe.guidance.model_dump()
            settings = recipe.training.model_dump(exclude={"steps", "micro_batch"})
            return {"data": data, "gates": recipe.gates.model_dump(), "guidance": guidance, **settings}

        own, others = told(self), told(other)
        name = next((name for name in own if own[name] != others[name]), None)
        if name in ("data", "gates", "guidance"):
            return f"other {name} than the recipe's"
        return name and f"{name} {own[name]}, where the recipe says {others[name]}"
