"""``python -m assets.build data | train | cards | all``: remake the built-in adapters and their task rows.
``python -m assets.build image-base | image-clip --out FOLDER``, ``image-grid FOLDER``: the image models;
``image-loras --base FOLDER --clip FOLDER --out FOLDER``: their LoRAs; ``image-captions``: pictures with captions for gates over
them; see ``images/stages.py``.
``python -m assets.build first``, last of all: what the page opens with, computed ahead.

Everything is seeded. Interrupted training continues from its last checkpoint, and finished adapters are left as they
are unless ``--force`` is given.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from assets.build.images import stages as images
from assets.build.packages import BuildError, copy_terms
from assets.build.tasks import TASKS, rows

TEXT = Path(__file__).parents[1] / "text"


def _names(arguments: argparse.Namespace) -> list[str]:
    return arguments.only or list(TASKS)


def data(arguments: argparse.Namespace) -> None:
    """Write every task's rows: held-out and tune rows into the repository, the others into the work folder; licences."""
    for name in _names(arguments):
        made = rows(name, arguments.work / "packages")
        for folder, splits in ((TEXT / "tasks", ("held_out", "tune")), (arguments.work / "train", ("train",))):
            folder.mkdir(parents=True, exist_ok=True)
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in made if row["split"] in splits]
            (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        for package in TASKS[name].packages:
            copy_terms(package, arguments.work / "packages", TEXT / "licences")
        print(f"{name}: {len(made)} rows", flush=True)


def _load_rows(arguments: argparse.Namespace, name: str) -> list[dict[str, str]]:
    files = [TEXT / "tasks" / f"{name}.jsonl", arguments.work / "train" / f"{name}.jsonl"]
    if not all(file.exists() for file in files):
        data(argparse.Namespace(**{**vars(arguments), "only": [name]}))
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def _load_base(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """Model (fp32) and tokenizer; a folder or a hub id goes to transformers, the built-in id to the app's catalogue."""
    import torch

    torch.set_num_threads(arguments.threads)
    if arguments.base == "smollm2-135m-instruct":
        from backends.bases import load_base

        base = load_base(arguments.base)
        return base.model.float(), base.tokenizer
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(arguments.base, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(arguments.base)


def train(arguments: argparse.Namespace) -> None:
    """Train what is not there yet, one adapter after another."""
    from assets.build.train import SPECS, make

    model = None
    for name in _names(arguments):
        folder = TEXT / "adapters" / name
        if (folder / "training.json").exists():
            if not arguments.force:
                print(f"{name}: already trained", flush=True)
                continue
            (folder / "training.json").unlink()  # so that an interrupted run is continued, not begun again
        task_rows = _load_rows(arguments, name)
        if model is None:
            model, tokenizer = _load_base(arguments)
        make(SPECS[name], task_rows, model, tokenizer, arguments.work, folder)
        cards(arguments)


def cards(arguments: argparse.Namespace) -> None:
    """Write README.md of every trained adapter and the overview of all."""
    from assets.build.cards import card, overview
    from assets.build.train import SPECS

    records = {}
    for name in TASKS:
        folder = TEXT / "adapters" / name
        if (folder / "training.json").exists():
            records[name] = json.loads((folder / "training.json").read_text(encoding="utf-8"))
            (folder / "README.md").write_text(card(SPECS[name], TASKS[name], records[name]), encoding="utf-8")
    (TEXT / "README.md").write_text(overview(SPECS, TASKS, records), encoding="utf-8")


def everything(arguments: argparse.Namespace) -> None:
    """Data, then training, then the cards."""
    for stage in (data, train, cards):
        stage(arguments)


def first(arguments: argparse.Namespace) -> None:
    """What the page opens with on either base: its first comparison and the maps of its picks."""
    from components import kinds
    from components.compare import ahead

    for kind in arguments.kind or (kinds.TEXT, kinds.IMAGE):
        ahead.write(kind)
        ahead.write_maps(kind)
        print(f"{kind}: written", flush=True)


def main() -> int:
    """Parse the command line and run it; 1 when it could not be done."""
    cache = Path(os.environ.get("BRICKYARD_HOME", Path.home() / ".cache/brickyard"))
    parser = argparse.ArgumentParser(prog="python -m assets.build", description=__doc__)
    stages = {"data": data, "train": train, "cards": cards, "all": everything, "first": first, **images.STAGES}
    parser.add_argument("stage", choices=stages)
    parser.add_argument(
        "--only", action="append", choices=[*TASKS, *images.SPECS], help="this adapter only; may be repeated"
    )
    parser.add_argument("--base", default="smollm2-135m-instruct", help="id, hub id or folder of the base model")
    parser.add_argument("--work", type=Path, default=cache / "build", help="packages, training rows, checkpoints")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads of torch")
    parser.add_argument("--kind", action="append", choices=["text", "image"], help="of what `first` makes")
    parser.add_argument("--force", action="store_true", help="train anew what is already there")
    images.add_options(parser)
    arguments = parser.parse_args()
    try:
        stages[arguments.stage](arguments)
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
