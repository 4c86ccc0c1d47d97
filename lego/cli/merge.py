"""``merge`` and ``verify``: make an adapter from a recipe or from arguments, and check one that was made."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, get_args

from lego.cli.outside import add_rows_options, fetch, load_base, load_rows, outside, terminal_progress
from lego.errors import AdapterError
from lego.recipe import DType, Output, Recipe, Tuned
from lego.registry import method
from lego.weights import Weight

YAML = (".yaml", ".yml")


def add_commands(commands: Any) -> None:
    """Declare the commands."""
    merge = commands.add_parser("merge", help="merge adapters, as a recipe or the arguments say")
    merge.add_argument("-o", "--out", required=True, metavar="OUT", help="the folder to make; it must not exist")
    merge.add_argument("-m", "--method", help="see `python -m lego methods`; without it a recipe is expected")
    merge.add_argument("-p", "--parameter", action="append", default=[], metavar="NAME=VALUE", help="of the method")
    merge.add_argument("--seed", type=int, help="of everything random (default 0)")
    merge.add_argument("--format", help="peft, diffusers or kohya (default: the first source's)")
    merge.add_argument("--dtype", choices=get_args(DType), help="of the weights on disk (default float16)")
    merge.add_argument("--device", default="cpu", help="where it is computed (default cpu)")
    merge.add_argument("--tune-strength", metavar="ROWS", help="choose the strength on the rows of this JSONL file")
    add_rows_options(merge)
    merge.add_argument("--json", action="store_true", help="the report as JSON")
    merge.add_argument(
        "sources",
        nargs="+",
        metavar="RECIPE.yaml | ADAPTER[=WEIGHT]",
        help="a recipe; or adapters (a path, or owner/name[@revision] of the hub) with their weights: a number, then by pattern on "
        "module names, =0.5,q_proj=0,*.layers.1.*=2; later ones win",
    )
    merge.set_defaults(run=run_merge)

    verify = commands.add_parser("verify", help="run a merge's recipe again and compare (0 equal, 1 different)")
    verify.add_argument("out", metavar="OUT", help="the folder of a merge")
    verify.add_argument("--device", default="cpu", help="where it is computed (default cpu)")
    verify.add_argument(
        "--tolerance", type=float, default=0.0, metavar="ERROR", help="relative error that counts as equal (default 0)"
    )
    verify.add_argument("--json", action="store_true", help="as JSON")
    verify.set_defaults(run=run_verify)


def run_merge(options: argparse.Namespace) -> int:
    """Merge and write."""
    from lego.run import run_recipe

    out = Path(options.out)
    if out.exists() or out.is_symlink():
        raise AdapterError("exists already", out, "Choose another name or remove it first.")
    recipe, folder = recipe_of(options)
    if options.tune_strength:
        recipe = tuned(recipe, folder, options)
    progress = terminal_progress("merging")
    report = run_recipe(recipe, out, folder=folder, fetch=fetch, device=options.device, progress=progress)
    print(report.model_dump_json(indent=2) if options.json else report.text())
    return 0


def recipe_of(options: argparse.Namespace) -> tuple[Recipe, Path]:
    """The recipe that the arguments name or spell, and the folder its paths are relative to. What is given beside a recipe wins."""
    if options.method is None:
        if len(options.sources) != 1 or not options.sources[0].endswith(YAML):
            raise AdapterError("no method given", None, "Give -m METHOD and adapters, or one recipe.yaml.")
        path = Path(options.sources[0])
        recipe, folder = Recipe.read(path), path.parent
    else:
        if recipes := [text for text in options.sources if text.endswith(YAML)]:
            raise AdapterError("is a recipe, which names its method", recipes[0], "Give it alone, without -m.")
        sources = [source_of(text) for text in options.sources]
        recipe = Recipe.check({"sources": sources, "method": options.method}, "the arguments")
        folder = Path()
    given = [split_parameter(text) for text in options.parameter]
    if twice := next((name for name, count in Counter(name for name, _ in given).items() if count > 1), None):
        raise AdapterError(f"parameter {twice!r} is given twice", "-p", "Give one value.")
    parameters = recipe.parameters | dict(given)
    method(recipe.method).validate(parameters)  # before anything is opened or downloaded
    output = Output(
        format=options.format or recipe.output.format,
        dtype=options.dtype or recipe.output.dtype,
    )
    changes = {"parameters": parameters, "output": output}
    if options.seed is not None:
        changes["seed"] = options.seed
    if options.parameter or options.seed is not None:
        changes["tuned_on"] = None  # what was chosen on rows may be another now
    return recipe.model_copy(update=changes), folder


def source_of(text: str) -> dict[str, Any]:
    """``ADAPTER`` or ``ADAPTER=WEIGHT`` as a source of a recipe.

    Raises:
        AdapterError: when the weight is none.
    """
    from lego.recipe import place

    adapter, weight = split_weight(text)
    return {**place(adapter, Path()), "weight": weight}


def split_weight(text: str) -> tuple[str, Weight]:
    """An adapter and its weight (default 1). The longest beginning that exists is the path, whatever signs it has.

    Raises:
        AdapterError: when what follows is not a weight.
    """
    ends = [i for i, letter in enumerate(text) if letter == "="]
    if not ends or Path(text).exists():
        return text, 1.0
    end = next((i for i in reversed(ends) if Path(text[:i]).exists()), ends[0])
    parts = [part.rpartition("=") for part in text[end + 1 :].split(",")]
    # A number without a pattern is for all modules; alone it stays a number.
    patterns = [pattern for pattern, _, _ in parts]
    if len(set(patterns)) < len(patterns):
        twice = next(pattern for pattern in patterns if patterns.count(pattern) > 1)
        raise AdapterError(
            f"has two weights for {twice or '*'!r}", text, "Later patterns win over earlier ones: give one."
        )
    numbers = {pattern if equals else "*": parse_number(value, text) for pattern, equals, value in parts}
    return text[:end], numbers["*"] if list(numbers) == ["*"] else numbers


def parse_number(value: str, where: str) -> float:
    """A weight's number.

    Raises:
        AdapterError: when it is none.
    """
    try:
        return float(value)
    except ValueError as error:
        raise AdapterError(
            f"weight {value!r} is not a number", where, "Write ADAPTER=0.5 or ADAPTER=0.5,q_proj=0."
        ) from error


def split_parameter(text: str) -> tuple[str, str]:
    """``name=value``.

    Raises:
        AdapterError: when there is no =.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise AdapterError("is not NAME=VALUE", f"-p {text}")
    return name, value


def tuned(recipe: Recipe, folder: Path, options: argparse.Namespace) -> Recipe:
    """The recipe with the strength that is best on the rows; prints the trials."""
    from lego.run import run_recipe

    best_strength = outside("backends.tune:best_strength", "tuning a strength")
    rows, base = load_rows(options.tune_strength, options.split), load_base(options.base)
    plain = recipe.model_copy(
        update={"parameters": {**recipe.parameters, "strength": 1.0}, "output": Output(format="peft")}
    )
    with tempfile.TemporaryDirectory(prefix="brickyard-tune-") as scratch:
        merged = Path(scratch) / "strength-1"
        run_recipe(
            plain, merged, folder=folder, fetch=fetch, device=options.device, progress=terminal_progress("merging")
        )
        strength, trials = best_strength(base, merged, rows, progress=terminal_progress("trying strengths"))
    if not options.json:
        print(f"strength   exact    loss   ({len(rows.rows)} rows)")
        for trial in trials:
            mark = "  best" if trial.strength == strength else ""
            print(f"{trial.strength:8g}  {trial.exact:6.1%}  {trial.nll:6.3f}{mark}")
    tuned_on = Tuned(rows=rows.sha256, count=len(rows.rows), split=rows.split, base=base.info.id)
    return recipe.model_copy(update={"parameters": {**recipe.parameters, "strength": strength}, "tuned_on": tuned_on})


def run_verify(options: argparse.Namespace) -> int:
    """Run the recipe again and compare."""
    from lego.verify import verify

    found = verify(
        Path(options.out),
        fetch=fetch,
        device=options.device,
        tolerance=options.tolerance,
        progress=terminal_progress("merging"),
    )
    print(json.dumps(found.as_dict(), indent=2, ensure_ascii=False) if options.json else found.text())
    return 0 if found.equal else 1
