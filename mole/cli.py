"""The commands of ``python -m mole``. Bases, rows and generation come from outside this package, by name."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from lego.cli.outside import load_base, outside
from lego.errors import AdapterError
from lego.tables import grid
from mole.recipe import GateRecipe
from mole.train import Progress


def add_commands(commands: Any) -> None:
    """Declare the commands."""
    train = commands.add_parser("train", help="train gates by a recipe")
    train.add_argument("recipe", metavar="RECIPE.yaml", help="sources, data, gates and training; see the README")
    train.add_argument("-o", "--out", required=True, metavar="FOLDER", help="of the gates; it must not exist")
    train.add_argument(
        "--resume", metavar="FOLDER", help="go on where these gates were: a checkpoint, or a training with fewer steps"
    )
    train.add_argument(
        "--every", type=int, default=0, metavar="STEPS", help="keep a checkpoint, FOLDER.stepN, so many steps apart"
    )
    train.set_defaults(run=run_train)

    generate = commands.add_parser("generate", help="answer prompts with gated LoRAs")
    generate.add_argument("gates", metavar="FOLDER", help="of trained gates")
    generate.add_argument("--prompt", action="append", required=True, help="may be given several times")
    generate.add_argument("--mask", nargs="+", default=[], metavar="NAME", help="LoRAs to leave out")
    generate.add_argument("--tokens", type=int, default=64, help="at most so many (default 64)")
    generate.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest (default)")
    generate.add_argument("--seed", type=int, default=0)
    generate.add_argument(
        "--raw", action="store_true", help="continue the text instead of answering in the chat format"
    )
    generate.set_defaults(run=run_generate)

    judge = commands.add_parser("eval", help="score the gates beside the base, each LoRA and their average")
    judge.add_argument("gates", metavar="FOLDER", help="of trained gates")
    judge.add_argument(
        "--rows", metavar="ROWS", help="a JSONL file or built-in task; what they were trained on unless given"
    )
    judge.add_argument("--split", default="held_out", help="the rows of this split (default held_out; all: every row)")
    judge.add_argument("--mask", nargs="+", default=[], metavar="NAME", help="score them without these LoRAs too")
    judge.set_defaults(run=run_eval)

    show = commands.add_parser("show", help="what the gates are, and what each chooses for a prompt")
    show.add_argument("gates", metavar="FOLDER", help="of trained gates")
    show.add_argument("--prompt", help="the gates' choices for it")
    show.add_argument("--raw", action="store_true", help="the prompt as it is, not in the chat format")
    show.set_defaults(run=run_show)


def run_train(options: argparse.Namespace) -> int:
    """Train, keep checkpoints, and keep what was learned when stopped."""
    out, path = Path(options.out), Path(options.recipe)
    if out.exists() or out.is_symlink():
        raise AdapterError("exists already", out, "Choose another name or remove it first.")
    recipe = GateRecipe.read(path)
    base = load_base(recipe.base)
    add = outside("backends.library:add_source", "training gates")
    keys = [add(source, path.parent).key for source in recipe.sources]
    training = outside("backends.training:Training", "training gates")(base, keys, recipe, path.parent)
    if options.resume:
        training.resume(Path(options.resume))
    tell = print if training.first else silent
    tell(f"about {clock(training.expected_seconds())} for {recipe.training.steps} steps", file=sys.stderr)
    stop, first, progress = threading.Event(), None, None
    before = signal.signal(signal.SIGINT, lambda *_: stop.set())
    try:
        for progress in training.run(stop):
            first = first or progress
            tell(line(progress, first), file=sys.stderr, flush=True)
            if options.every and progress.step % options.every == 0 and progress.step < progress.steps:
                training.save(out.with_name(f"{out.name}.step{progress.step}"))
    finally:
        signal.signal(signal.SIGINT, before)
    training.save(out)
    tell(f"{out}: {len(training.gates.sites)} gates, {training.gates.parameter_count} parameters")
    return 1 if progress and progress.stopped else 0


def silent(*_: object, **__: object) -> None:
    """In place of `print` in all but the first of several processes."""


def line(progress: Progress, first: Progress) -> str:
    """One step for a terminal; the time left goes by the steps since the first, before which samples were looked at."""
    if progress.stopped:
        return f"stopped: {progress.stopped}"
    told = (
        f"{progress.step}/{progress.steps}  loss {progress.loss:.3f}  balance {progress.balance:.3f}  "
        f"entropy {progress.entropy:.3f}"
    )
    if progress.step == first.step:
        return told
    pace = (progress.seconds - first.seconds) / (progress.step - first.step)
    return f"{told}  {clock(pace * (progress.steps - progress.step))} left"


def clock(seconds: float) -> str:
    """A duration for people."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def run_generate(options: argparse.Namespace) -> int:
    """Answer the prompts."""
    base, gates = opened(options.gates)
    variant = outside("backends.variants:Variant", "running gates")("gated", weighting(gates, options.mask))
    sampling = outside("backends.sampling:Sampling", "running gates")(
        max_new_tokens=options.tokens, temperature=options.temperature, seed=options.seed, chat=not options.raw
    )
    *_, last = outside("backends.text:generate", "running gates")(base, [variant], options.prompt, sampling)
    print(*last.texts[0], sep="\n")
    return 0


def run_eval(options: argparse.Namespace) -> int:
    """A table: variants × tasks, share of rows answered exactly."""
    base, gates = opened(options.gates)
    tables = outside("backends.gated:scores", "scoring gates")(base, gates, options.rows, options.split, options.mask)
    names = list(tables)
    variants = tables[names[0]].names
    rows = []
    for number, variant in enumerate(variants):
        exact = [100 * tables[name].exact[number] for name in names]
        rows.append([variant, *(f"{value:.1f}" for value in exact), f"{sum(exact) / len(exact):.1f}"])
    print(*grid(["exact match, %", *names, "mean"], rows), sep="\n")
    return 0


def run_show(options: argparse.Namespace) -> int:
    """The config, and the choices for a prompt."""
    if not options.prompt:
        checkpoint = outside("mole.checkpoint:read_config", "reading gates")(Path(options.gates))
        print(checkpoint.recipe.to_yaml(), end="")
        print(f"# {len(checkpoint.sites)} gates on {checkpoint.base.id}, {checkpoint.steps} steps")
        return 0
    base, gates = opened(options.gates)
    found = outside("backends.gated:choices", "running gates")(base, gates, [options.prompt], chat=not options.raw)
    rows = [
        [site or "network", *(f"{value:.2f}" for value in shares)]
        for site, shares in zip(found.sites, found.shares.tolist(), strict=True)
    ]
    print(*grid(["gate", *gates.columns], rows), sep="\n")
    return 0


def opened(folder: str) -> Any:
    """Base and gates; see `backends.gates.opened`."""
    return outside("backends.gates:opened", "running gates")(Path(folder))


def weighting(gates: Any, masked: list[str]) -> Any:
    """The weighting of gates without the masked LoRAs."""
    return gates.weighting(outside("backends.gates:masked_keys", "running gates")(gates, masked))
