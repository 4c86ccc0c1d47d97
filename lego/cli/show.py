"""``methods``, ``inspect``, ``preflight`` and ``compare``: what there is, before anything is made."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lego.adapter import Adapter
from lego.cli.outside import fetch, outside
from lego.errors import AdapterError
from lego.formats.header import read_header
from lego.inspect import inspect
from lego.recipe import Recipe, Source, place
from lego.registry import Method, Parameter, method, methods
from lego.report import spread
from lego.sources import open_source
from lego.write import RECIPE_KEY


def add_commands(commands: Any) -> None:
    """Declare the commands."""
    listed = commands.add_parser("methods", help="list the merge methods, or tell all about one")
    listed.add_argument("name", nargs="?", metavar="NAME", help="of one method")
    listed.set_defaults(run=run_methods)

    told = commands.add_parser("inspect", help="tell what an adapter is")
    told.add_argument("adapter", metavar="ADAPTER", help="a path, or owner/name[@revision] of the hub")
    told.set_defaults(run=run_inspect)

    judged = commands.add_parser(
        "preflight", help="tell from the headers alone whether adapters can be merged (0 all can, 1 not all)"
    )
    judged.add_argument("adapters", nargs="+", metavar="ADAPTER", help="a path, or owner/name[@revision] of the hub")
    judged.set_defaults(run=run_preflight)

    compared = commands.add_parser(
        "compare", help="measure adapters against each other, and merges against their sources"
    )
    compared.add_argument("adapters", nargs="+", metavar="ADAPTER", help="a path, or owner/name[@revision] of the hub")
    compared.set_defaults(run=run_compare)

    for command in (listed, told, judged, compared):
        command.add_argument("--json", action="store_true", help="as JSON")


def show(data: Any) -> None:
    """Print as JSON."""
    print(json.dumps(data, indent=2, ensure_ascii=False))


def run_methods(options: argparse.Namespace) -> int:
    """List the methods, or tell all about one."""
    found = [method(options.name)] if options.name else list(methods().values())
    if options.json:
        described = [describe(method) for method in found]
        show(described[0] if options.name else described)
    elif options.name:
        tell(found[0])
    else:
        for each in found:
            print(f"{each.name}: {each.summary}")
            print(f"    {each.equations}" + (f"   {each.paper}" if each.paper else ""))
            for parameter in each.parameters:
                print(f"    -p {parameter.name}={parameter.default}{choices(parameter)}  {parameter.help}")
    return 0


def describe(method: Method) -> dict[str, Any]:
    """One method as data."""
    plain = ("name", "title", "summary", "paper", "equations", "random", "unit_invariant", "normalised")
    parameters = [vars(parameter) for parameter in method.parameters]
    return {name: getattr(method, name) for name in plain} | {"parameters": parameters}


def tell(method: Method) -> None:
    """All about one method."""
    print(f"{method.name} - {method.title}\n\n{method.summary}\n")
    print(f"  equations  {method.equations}")
    print(f"  paper      {method.paper or 'none'}")
    print(f"  seed       {'matters' if method.random else 'does not matter'}")
    print(f"  units      {'their order does not matter' if method.unit_invariant else 'their order matters'}")
    print(f"  weights    {'divided by their sum' if method.normalised else 'as given'}\n")
    for parameter in method.parameters:
        bounds = parameter.minimum, parameter.maximum
        limits = "" if bounds == (None, None) else f", {bounds[0]} to {bounds[1]}".replace("None", "any")
        print(
            f"  -p {parameter.name}={parameter.default}  {parameter.type}{limits}{choices(parameter)}\n     {parameter.help}"
        )


def choices(parameter: Parameter) -> str:
    """The values of a choice."""
    return f" ({' | '.join(map(str, parameter.choices))})" if parameter.choices else ""


def opened(text: str) -> Adapter:
    """The adapter that an argument names, with the recipe in its header if it is a merge."""
    adapter = open_source(Source.model_validate(place(text, Path())), Path(), fetch)
    recipe = read_header(adapter.weights_file).metadata.get(RECIPE_KEY) if adapter.weights_file else None
    return replace(adapter, recipe=Recipe.from_yaml(recipe, text)) if recipe else adapter


def run_inspect(options: argparse.Namespace) -> int:
    """Tell what an adapter is."""
    facts = inspect(opened(options.adapter))
    if options.json:
        show(facts)
        return 0
    scales = sorted({module["scale"] for module in facts["modules"]})
    print(f"{facts['name']}  ({facts['path']})")
    print(f"  base      {facts['base_model'] or 'not named'}")
    print(f"  modules   {len(facts['modules'])}: {', '.join(facts['kinds'])} in {len(facts['layers'])} layers")
    print(f"  ranks     {', '.join(map(str, facts['ranks']))}")
    print(f"  scale     {', '.join(f'{scale:g}' for scale in scales)}")
    print(f"  weights   {facts['parameters']:,} in {', '.join(facts['dtypes'])}")
    print(f"  sha256    {facts['sha256']}")
    return 0


def run_preflight(options: argparse.Namespace) -> int:
    """Judge adapters by their headers."""
    found = {text: judge(text) for text in options.adapters}
    if options.json:
        show([{"adapter": text, **facts} for text, facts in found.items()])
    else:
        for text, facts in found.items():
            print(f"{text}: {'can be merged' if not facts['reasons'] else 'cannot be merged'}")
            print("".join(f"  because   {reason}\n" for reason in facts["reasons"]), end="")
            print(f"  base      {facts['base_model'] or 'not named'}")
            if facts["modules"]:
                kinds = f"{', '.join(facts['kinds'])} in {len(facts['layers'])} layers"
                print(f"  modules   {len(facts['modules'])}: {kinds}, rank {spread(facts['ranks'])}")
            print(f"  weights   {facts['bytes']:,} bytes in {', '.join(facts['dtypes'])}, format {facts['format']}")
    return 1 if any(facts["reasons"] for facts in found.values()) else 0


def judge(text: str) -> dict[str, Any]:
    """The preflight of one adapter as data; what cannot be looked at at all is refused for that reason.

    Raises:
        AdapterError: when there is nothing to look at.
    """
    from lego.preflight import preflight

    where = place(text, Path())
    if "hub" in where:
        found = outside("backends.opener:preflight", "looking at the hub")(where["hub"], where.get("revision"))
    else:
        found = preflight(text)
    derived = {name: list(getattr(found, name)) for name in ("ranks", "kinds", "layers")}
    modules = [{"module": module, **asdict(spec)} for module, spec in found.modules.items()]
    plain = {name: getattr(found, name) for name in ("format", "base_model", "bytes")}
    lists = {name: list(getattr(found, name)) for name in ("dtypes", "fused", "reasons")}
    return {**plain, **lists, **derived, "modules": modules}


def run_compare(options: argparse.Namespace) -> int:
    """Measure adapters against each other."""
    from lego.compare import compare

    if len(options.adapters) < 2:
        raise AdapterError("there is nothing to compare with", options.adapters[0], "Give at least two adapters.")
    found = compare([opened(text) for text in options.adapters])
    if options.json:
        show(found.as_dict())
    else:
        print(found.text())
    return 0
