"""A merge as data: everything needed to do it again."""

from __future__ import annotations

from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from lego.errors import AdapterError

DType = Literal["float16", "bfloat16", "float32"]


class Source(BaseModel):
    """One adapter of a merge: a path or a hub id, its hash, its weight (one number, or numbers by patterns on module names)."""

    model_config = ConfigDict(extra="forbid")

    name: str | None = None
    path: str | None = None
    hub: str | None = Field(None, description="owner/name")
    revision: str | None = Field(None, description="branch, tag or commit of the hub's repository")
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    weight: float | dict[str, float] = 1.0


class Output(BaseModel):
    """How the merged adapter is written."""

    model_config = ConfigDict(extra="forbid")

    format: str | None = Field(default=None, description="peft, diffusers or kohya; the first source's unless given")
    dtype: DType = "float16"


class Recipe(BaseModel):
    """Sources with their hashes, method, parameters, seed and output."""

    model_config = ConfigDict(extra="forbid")

    brickyard: str | None = Field(None, description="the version that made it")
    base_model: str | None = None
    sources: list[Source] = Field(min_length=1)
    method: str = "lego"
    parameters: dict[str, Any] = {}
    seed: int = 0
    output: Output = Field(default_factory=Output)

    def to_yaml(self) -> str:
        """The recipe as a YAML document, without what is not set."""
        return yaml.safe_dump(self.model_dump(exclude_none=True), sort_keys=False, allow_unicode=True)

    @classmethod
    def from_yaml(cls, text: str) -> Recipe:
        """Read a recipe.

        Raises:
            AdapterError: when the text is not YAML or not a recipe.
        """
        try:
            return cls.model_validate(yaml.safe_load(text))
        except (yaml.YAMLError, ValueError) as error:
            raise AdapterError(f"is not a recipe ({error})", "recipe.yaml") from error
