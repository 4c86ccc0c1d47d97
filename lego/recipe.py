"""A merge as data: everything needed to do it again. Written in full by every merge, short where a person writes it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable
from pathlib import Path
from reprlib import Repr
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from lego.errors import AdapterError
from lego.formats.opening import MISFITS, PlainLoader

DType = Literal["float16", "bfloat16", "float32"]
HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+)(?:@([\w./-]+))?")
SHA256 = "^[0-9a-f]{64}$"
MOST = 1_000_000
"""Characters of a recipe; patterns for every module of SDXL take less, and YAML is slow to read."""


def not_bool(value: Any) -> Any:
    """The value, unless it is yes or no, which pydantic would take for 1 or 0."""
    if isinstance(value, bool):
        raise PydanticCustomError("not_bool", "yes and no are no numbers")
    return value


Number = Annotated[float, BeforeValidator(not_bool)]


class Part(BaseModel):
    """A part of a recipe. The description of a field is what it takes, and what an error says."""

    model_config = ConfigDict(extra="forbid")


class Document(Part):
    """A whole recipe, as YAML."""

    def to_yaml(self) -> str:
        """The recipe as a YAML document, without what is not set."""
        return yaml.safe_dump(self.model_dump(exclude_none=True), sort_keys=False, allow_unicode=True)

    @classmethod
    def from_yaml(cls, text: str, where: object = "recipe.yaml", folder: Path | None = None) -> Self:
        """Read a recipe.

        Args:
            text: the document.
            where: its name in errors.
            folder: what its relative paths are relative to; the current one unless given.

        Raises:
            AdapterError: when the text is not YAML or not a recipe.
        """
        return cls.check(load(text, where), where, folder)

    @classmethod
    def read(cls, path: Path) -> Self:
        """The recipe in a file.

        Raises:
            AdapterError: when it cannot be read or is not a recipe.
        """
        return cls.from_yaml(read_text(path), path, path.parent)

    @classmethod
    def check(cls, document: Any, where: object, folder: Path | None = None) -> Self:
        """A loaded document as a recipe; as `from_yaml`.

        Raises:
            AdapterError: naming the field and what it takes.
        """
        try:
            return cls.model_validate(document, context={"folder": folder or Path()})
        except ValidationError as error:
            raise AdapterError(explain(error, cls), where) from error


class Edits(Part):
    """Units of a source that are scaled, or with the factor 0 taken out (`lego.edit`)."""

    factor: Number = Field(default=0.0, description="a number that multiplies their update; 0 takes them out")
    units: dict[str, list[Annotated[int, Field(ge=0)]]] = Field(description="{module: [row of A, …]}")


class Source(Part):
    """One adapter of a merge: where it is, its hash, its weight. A bare string stands for ``path``, or for ``hub`` (see `place`)."""

    name: str | None = Field(default=None, description="a name")
    path: str | None = Field(default=None, description="a path, relative to the recipe's file")
    hub: str | None = Field(
        default=None,
        pattern=f"^{HUB_ID.pattern.split('(?:')[0]}$",
        description="a hub id, owner/name (its revision apart)",
    )
    revision: str | None = Field(default=None, description="a branch, tag or commit of the hub's repository")
    sha256: str | None = Field(
        default=None, pattern=SHA256, description="the weights file's SHA-256, 64 digits of 0-9a-f"
    )
    weight: Number | dict[str, Number] = Field(
        default=1.0, description="a number, or numbers by pattern on module names such as {q_proj: 0.5}"
    )

    edits: list[Edits] | None = Field(default=None, description="a list of {factor: …, units: {module: [0, …]}}")

    @model_validator(mode="before")
    @classmethod
    def from_string(cls, value: Any, info: ValidationInfo) -> Any:
        """A bare string as a source."""
        return place(value, (info.context or {}).get("folder", Path())) if isinstance(value, str) else value

    @model_validator(mode="after")
    def one_place(self) -> Source:
        """Refuse what is in two places, or a revision of nothing."""
        if self.path and self.hub:
            raise ValueError("has a path and a hub id; give one of them")
        if self.revision and not self.hub:
            raise ValueError("has a revision but no hub id")
        return self

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        return self.path or (f"{self.hub}{at}" if self.hub else self.name or "a source without a place")


def place(text: str, folder: Path) -> dict[str, str]:
    """What a bare string means: a path when there is one or it cannot be a hub id, else ``owner/name`` or ``owner/name@revision``.

    Raises:
        AdapterError: for the address of a page.
    """
    if re.match(r"https?://", text):
        raise AdapterError(f"{text} is the address of a page", None, "Write owner/name or owner/name@revision.")
    if (folder / Path(text).expanduser()).exists() or not (found := HUB_ID.fullmatch(text)):
        return {"path": text}
    hub, revision = found.groups()
    return {"hub": hub, **({"revision": revision} if revision else {})}


class Output(Part):
    """How the merged adapter is written."""

    format: str | None = Field(default=None, description="peft, diffusers or kohya; the first source's unless given")
    dtype: DType = Field(default="float16", description=" or ".join(get_args(DType)))


class Tuned(Part):
    """What the strength was chosen on: the hash of the rows' file, which of its rows and how many, and the base."""

    rows: str = Field(pattern=SHA256, description="the SHA-256 of the rows' file")
    count: int = Field(description="how many rows")
    split: str | None = Field(default=None, description="the rows' split")
    base: str = Field(description="the base's id")


class Recipe(Document):
    """Sources with their hashes, method, parameters, seed and output."""

    brickyard: str | None = Field(default=None, description="the version that made it, as a string")
    base_model: str | None = Field(default=None, description="the name of the base")
    sources: list[Source] = Field(
        min_length=1, description="a list of at least one path, hub id or {path: …, weight: …}"
    )
    method: str = Field(default="lego", description="a name that `python -m lego methods` lists")
    parameters: dict[str, Any] = Field(default={}, description="the method's own, name: value")
    seed: Annotated[int, BeforeValidator(not_bool)] = Field(default=0, description="a whole number")
    tuned_on: Tuned | None = Field(default=None, description="what the strength was chosen on")
    output: Output = Field(default_factory=Output, description="{format: …, dtype: …}")


class Loader(PlainLoader):
    """YAML in which no key stands twice: the format leaves open which one counts."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """A mapping, when its keys differ."""
        keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if twice := next((key for key, count in keys.items() if count > 1), None):
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def load(text: str, where: object) -> Any:
    """A YAML document.

    Raises:
        AdapterError: when the text is none, or too long.
    """
    if len(text) > MOST:
        raise AdapterError(f"has {len(text):,} characters, more than the {MOST:,} of any recipe", where)
    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, ValueError, RecursionError, *MISFITS) as error:
        raise AdapterError(f"is not YAML ({error or 'nested too deeply'})", where) from error


def read_text(path: Path) -> str:
    """A text file.

    Raises:
        AdapterError: when it cannot be read as UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise AdapterError(f"cannot be read ({error.strerror})", path) from error
    except UnicodeDecodeError as error:
        raise AdapterError("is not text in UTF-8", path) from error


# Aliases make values that are small in the file and endless when written out.
SHORT = Repr()
SHORT.maxstring = 60


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """The first thing wrong, in one line: the field's place, its value and what it takes."""
    first = error.errors(include_url=False)[0]
    place, fields, takes, unknown = "", model.model_fields, "", first["type"] == "extra_forbidden"
    steps, value = list(first["loc"]), SHORT.repr(first["input"])[:60]
    if first["type"] == "invalid_key" or "[key]" in steps:
        return f"has the name {value} where a text is expected. Put it between quotes"
    for step in steps[:-1] if unknown else steps:
        if isinstance(step, int):
            place, takes = f"{place}[{step}]", "a path, a hub id or {path: …, weight: …}"
        elif step in fields:
            place, takes = f"{place}.{step}".lstrip("."), fields[step].description or ""
            inner = [t for t in (fields[step].annotation, *get_args(fields[step].annotation)) if isinstance(t, type)]
            fields = next((t.model_fields for t in inner if issubclass(t, BaseModel)), fields)
        elif "[" not in str(step) and step != "float":
            place += f".{step}"  # a pattern of a weight
    if unknown:
        hint = "" if place else "; what belongs to the method goes under parameters"
        return f"{f'{place} has' if place else 'has'} no field {steps[-1]!r}. It takes: {', '.join(fields)}{hint}"
    if first["type"] == "missing":
        return f"lacks {place}: it takes {takes}"
    if first["type"] == "value_error":
        return f"{place} {first['msg'].removeprefix('Value error, ')}"
    if not place:
        return f"is not a recipe but {value}"
    return f"{place} takes {takes}, not {value}"
