"""A merge as data: everything needed to do it again."""

from __future__ import annotations

from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from lego.errors import AdapterError


class Source(BaseModel):
    """One adapter of a merge."""

    model_config = ConfigDict(extra="forbid")

    name: str
    path: str | None = None
    sha256: str
    weight: float = 1.0


class Recipe(BaseModel):
    """Sources with their hashes, method, parameters and seed."""

    model_config = ConfigDict(extra="forbid")

    brickyard: str
    base_model: str | None = None
    sources: list[Source]
    method: str
    parameters: dict[str, Any]
    seed: int

    def to_yaml(self) -> str:
        """The recipe as a YAML document."""
        return yaml.safe_dump(self.model_dump(), sort_keys=False, allow_unicode=True)

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
