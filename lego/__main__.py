"""``python -m lego methods | inspect | merge``: adapters from the command line. Exit 2 and one line for bad input."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lego
from lego.errors import AdapterError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    options = parser().parse_args(arguments)
    try:
        return options.run(options)
    except AdapterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader of a pipe (head) left; Python would complain again when it flushes stdout at exit.
        sys.stderr.close()
        return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m lego", description="Take LoRAs apart, merge them, write them.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    methods = commands.add_parser("methods", help="list the merge methods and their parameters")
    methods.add_argument("--json", action="store_true", help="as JSON")
    methods.set_defaults(run=run_methods)

    inspect = commands.add_parser("inspect", help="tell what an adapter is, from its headers alone")
    inspect.add_argument("adapter", metavar="ADAPTER", help="a PEFT folder")
    inspect.add_argument("--json", action="store_true", help="as JSON")
    inspect.set_defaults(run=run_inspect)

    merge = commands.add_parser("merge", help="merge adapters into a PEFT folder")
    merge.add_argument("-m", "--method", required=True, help="see `python -m lego methods`")
    merge.add_argument("-p", "--parameter", action="append", default=[], metavar="NAME=VALUE", help="of the method")
    merge.add_argument("--seed", type=int, default=0, help="of everything random (default 0)")
    merge.add_argument("-o", "--out", required=True, metavar="OUT", help="the folder to make; it must not exist")
    merge.add_argument(
        "adapters", nargs="+", metavar="ADAPTER[=WEIGHT]", help="a PEFT folder and its weight (default 1)"
    )
    merge.set_defaults(run=run_merge)
    return top


def run_methods(options: argparse.Namespace) -> int:
    """List the methods."""
    found = lego.methods()
    if options.json:
        print(json.dumps([describe(method) for method in found.values()], indent=2, ensure_ascii=False))
        return 0
    for method in found.values():
        print(f"{method.name}: {method.summary}")
        print(f"    {method.equations}" + (f"   {method.paper}" if method.paper else ""))
        for parameter in method.parameters:
            values = f" ({' | '.join(map(str, parameter.choices))})" if parameter.choices else ""
            print(f"    -p {parameter.name}={parameter.default}{values}  {parameter.help}")
    return 0


def describe(method: lego.Method) -> dict[str, Any]:
    """One method as data."""
    plain = ("name", "title", "summary", "paper", "equations", "random", "unit_invariant")
    parameters = [vars(parameter) for parameter in method.parameters]
    return {name: getattr(method, name) for name in plain} | {"parameters": parameters}


def run_inspect(options: argparse.Namespace) -> int:
    """Tell what an adapter is."""
    facts = lego.inspect(lego.read_adapter(options.adapter))
    if options.json:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
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


def run_merge(options: argparse.Namespace) -> int:
    """Merge and write."""
    if Path(options.out).exists():
        raise AdapterError("exists already", options.out, "Choose another name or remove it first.")
    pairs = [split_weight(text) for text in options.adapters]
    adapters = [lego.read_adapter(path) for path, _ in pairs]
    parameters = lego.method(options.method).validate(dict(split_parameter(text) for text in options.parameter))
    weights = [weight for _, weight in pairs]
    merged = lego.merge(
        adapters, method=options.method, weights=weights, seed=options.seed, name=Path(options.out).name, **parameters
    )
    lego.write_adapter(merged, options.out)
    assert merged.report is not None
    print(merged.report.text())
    return 0


def split_weight(text: str) -> tuple[str, float]:
    """``path`` or ``path=0.5``; a path that exists as it stands is a path, whatever signs it has.

    Raises:
        AdapterError: when what follows the last = is not a number.
    """
    path, equals, weight = text.rpartition("=")
    if not equals or Path(text).exists():
        return text, 1.0
    try:
        return path, float(weight)
    except ValueError as error:
        raise AdapterError(f"weight {weight!r} is not a number", text, "Write ADAPTER=0.5.") from error


def split_parameter(text: str) -> tuple[str, str]:
    """``name=value``.

    Raises:
        AdapterError: when there is no =.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise AdapterError("is not NAME=VALUE", f"-p {text}")
    return name, value


if __name__ == "__main__":
    sys.exit(main())
