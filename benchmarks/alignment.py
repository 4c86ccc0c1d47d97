"""Do style and subject survive merging? Text alignment and image alignment of pictures, by the contrastive model, over three seeds.

    python -m benchmarks.alignment [--write] [--as-it-is] [--only TEXT]

The built-in image LoRAs, a style with a subject and two styles with a subject: the base, each LoRA, sum, average (NLA), linear, TIES,
SVD, LEGO and MoLE. Text alignment is the cosine of a picture with the caption that names subject and style; image alignment its mean
cosine with what each LoRA was trained on. Prompts name the subject only. MoLE's gates learn as in the paper, from captions that name
subject and style, by what the contrastive model sees in their pictures (the very model that judges all). A seed is that of the noise,
of LEGO's clustering and of the gates' training. Results are kept in ``results/alignment.json`` as soon as they are there; contact
sheets go to ``assets/image/sheets``.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from assets.build.images.concepts import caption, noun
from assets.build.images.pictures import SIZE, held_out
from assets.build.images.specs import SPECS
from backends import library
from backends.alignment import Alignment
from backends.bases import IMAGE, BaseError, ImageBase, load_base
from backends.captions import METADATA
from backends.gates import GateEntry
from backends.image import Drawing, Variant, draw
from backends.training import Training
from benchmarks.kept import Kept
from benchmarks.report import ROOT, finish, machine, parser_for, table
from mole.pool import Weighting
from mole.recipe import GateRecipe

COMBINATIONS = (
    ("ink-style", "vehicles"),
    ("glossy-style", "animals"),
    ("flat-style", "glossy-style", "animals"),
)
MERGES: dict[str, dict[str, Any]] = {
    "linear": {"method": "linear"},
    "TIES": {"method": "ties"},
    "SVD, rank r": {"method": "svd", "rank": "r"},
    "LEGO, k = r": {"method": "lego", "k": "r"},
    "LEGO, k = 2r": {"method": "lego", "k": "2r"},
}
GATES = {"guidance": {"steps": 8}, "training": {"steps": 30, "batch": 4, "lr": 1e-3, "calibration": 12}}
FIXED = 4  # base, sum, average, MoLE
SEEDS = (0, 1, 2)
PROMPTS = PICTURES = 6  # of a combination, at most; of a cell, at least
SHEETS = ROOT / "assets" / "image" / "sheets"
ZOOM, LABEL = 2, 16

Cell = dict[str, Any]
Pictures = Sequence[Sequence[Image.Image | None]]


def tiles(sheet: Image.Image) -> list[Image.Image]:
    """The pictures of a sheet without gaps, row by row."""
    columns, rows = sheet.width // SIZE, sheet.height // SIZE
    corners = [(SIZE * column, SIZE * row) for row in range(rows) for column in range(columns)]
    cut = [sheet.convert("RGB").crop((x, y, x + SIZE, y + SIZE)) for x, y in corners]
    return [tile for tile in cut if tile.getextrema() != ((255, 255),) * 3]


class Combination:
    """Styles and a subject, what is asked of them, and what their pictures should be.

    Attributes:
        prompts: name the subject only, by its rare word where it has one.
        captions: what a perfect picture shows; with two styles only the subject.
        taught: what gates learn from: subject and style, each style in turn.
        unseen: whether subject and style were kept from every training together, by prompt.
    """

    def __init__(self, names: Sequence[str]) -> None:
        specs = [SPECS[name] for name in names]
        (subject,) = (spec for spec in specs if spec.concepts)
        styles = [spec.style for spec in specs if spec.style]
        concepts = sorted(subject.concepts, key=lambda concept: not held_out(concept, styles[0]))[:PROMPTS]
        wanted = styles[0] if len(styles) == 1 else None
        self.names, self.label = tuple(names), " + ".join(names)
        self.captions = [caption(concept, wanted) for concept in concepts]
        self.prompts = [
            caption(concept).replace(noun(concept), subject.word or noun(concept)) for concept in concepts
        ]  # fmt: skip
        self.taught = [caption(concept, style) for concept in concepts for style in styles]
        self.unseen = [any(held_out(concept, style) for style in styles) for concept in concepts]


class Bench:
    """The cells so far, and how to get more."""

    def __init__(self, base: str) -> None:
        """Nothing is drawn yet."""
        loaded = load_base(base)
        if not isinstance(loaded, ImageBase):
            raise BaseError("draws no pictures", base, "Give the folder of a pipeline.")
        self.base, self.judge = loaded, Alignment.load()
        self.sources = {entry.name: entry for entry in library.builtin("image")}
        self.references = {
            name: tiles(Image.open(self.sources[name].path / "references.png"))
            for names in COMBINATIONS for name in names
        }  # fmt: skip
        asked = [[c.names, c.prompts, c.captions] for c in map(Combination, COMBINATIONS)]
        keys = {name: self.sources[name].key for name in self.references}
        self.kept = Kept("alignment", keys, [asked, self.base.fingerprint])

    def variants(self, names: Sequence[str], seed: int) -> Iterator[Variant]:
        """What is compared."""
        keys = [self.sources[name].key for name in names]
        yield Variant("base")
        yield from (Variant(f"LoRA {name}", Weighting(((key, 1.0),))) for name, key in zip(names, keys, strict=True))
        yield Variant("sum", Weighting(tuple((key, 1.0) for key in keys)))
        yield Variant("average (NLA)", Weighting(tuple((key, 1 / len(keys)) for key in keys)))
        for label, options in MERGES.items():
            entry = library.merge([library.get(key) for key in keys], f"{label} {seed}", seed=seed, **options)
            yield Variant(label, Weighting(((entry.key, 1.0),)))
        yield Variant("MoLE", self.trained(names, seed).weighting())

    def trained(self, names: Sequence[str], seed: int) -> GateEntry:
        """Gates over a combination's LoRAs."""
        with tempfile.TemporaryDirectory() as scratch:
            lines = [json.dumps({"text": text}) + "\n" for text in Combination(names).taught]
            (Path(scratch) / METADATA).write_text("".join(lines), encoding="utf-8")
            recipe = GateRecipe.check(
                {**GATES, "sources": [*names], "data": [scratch], "training": {**GATES["training"], "seed": seed}},
                "MoLE",
            )
            training = Training(self.base, [self.sources[name].key for name in names], recipe)
            list(training.run())
            return training.add(f"alignment {seed}")

    def measure(self, names: Sequence[str], seed: int) -> None:
        """Draw and judge what is missing of a combination; with the first seed all of it, for the sheet."""
        asked, known = Combination(names), self.kept.known()
        place = SHEETS / f"{'-'.join(names)}.png"
        found = [key for key in known if key.startswith(f"{asked.label} | ") and key.endswith(f" | {seed}")]
        if len(found) == FIXED + len(names) + len(MERGES) and (seed != SEEDS[0] or place.exists()):
            return
        variants = list(self.variants(names, seed))
        missing = [variant for variant in variants if f"{asked.label} | {variant.name} | {seed}" not in known]
        whole = seed == SEEDS[0]
        shown = variants if whole else missing
        noises = -(-PICTURES // len(asked.prompts))
        drawing = Drawing(seeds=tuple(range(seed * PICTURES, seed * PICTURES + noises)))
        *_, sheet = draw(self.base, shown, asked.prompts, drawing)
        if whole:
            SHEETS.mkdir(parents=True, exist_ok=True)
            first = [[row[0] for row in column] for column in sheet.pictures]
            contact_sheet([variant.name for variant in shown], asked.prompts, first).save(place, optimize=True)
        for variant, column in zip(shown, sheet.pictures, strict=True):
            key = f"{asked.label} | {variant.name} | {seed}"
            cell = self.judged(asked, column)
            self.kept.keep(key, cell)
            print(f"{key}: {cell['text']:.3f} {cell['image']}", file=sys.stderr, flush=True)

    def judged(self, asked: Combination, column: Sequence[Sequence[Image.Image | None]]) -> Cell:
        """Both measures of one column of pictures: a row a prompt, a picture a noise."""
        drawn = [(picture, at) for at, row in enumerate(column) for picture in row if picture]
        pictures = [picture for picture, _ in drawn]
        text = self.judge.text_alignment(pictures, [asked.captions[at] for _, at in drawn]).tolist()
        unseen = [value for value, (_, at) in zip(text, drawn, strict=True) if asked.unseen[at]]
        images = [self.judge.image_alignment(pictures, self.references[name]).mean().item() for name in asked.names]
        return {"text": mean(text), "unseen": mean(unseen) if unseen else None, "image": images}


def contact_sheet(columns: Sequence[str], rows: Sequence[str], pictures: Pictures) -> Image.Image:
    """Rows of prompts, columns of variants, each named; the pictures of a row start from the same noise.

    Args:
        pictures: [column][row].
    """
    side, font = SIZE * ZOOM, ImageFont.load_default(11)
    whole = Image.new("RGB", (side * (1 + len(columns)), LABEL + side * len(rows)), "white")
    pen = ImageDraw.Draw(whole)
    for at, name in enumerate(columns, 1):
        pen.text((side * at + 3, 1), name, "black", font)
    for at, name in enumerate(rows):
        pen.text((3, LABEL + side * at + side // 2), name, "black", font)
        for number, column in enumerate(pictures, 1):
            if picture := column[at]:
                whole.paste(picture.resize((side, side)), (side * number, LABEL + side * at))
    return whole


def lines(known: dict[str, Cell], label: str) -> Iterator[list[str]]:
    """The table of one combination, the seeds of a variant in one line."""
    cells: dict[str, list[Cell]] = {}
    for key, cell in sorted(known.items()):
        of, variant, _ = key.split(" | ")
        if of == label:
            cells.setdefault(variant, []).append(cell)
    for variant, found in sorted(cells.items(), key=lambda item: mean(cell["text"] for cell in item[1])):
        texts, images = [cell["text"] for cell in found], list(zip(*(cell["image"] for cell in found), strict=True))
        unseen = [cell["unseen"] for cell in found if cell["unseen"] is not None]
        yield [
            variant,
            f"{mean(texts):.3f}",
            f"{stdev(texts):.3f} of {len(texts)}" if len(texts) > 1 else "",
            f"{mean(unseen):.3f}" if unseen else "",
            *(f"{mean(values):.3f}" for values in images),
            f"{mean(mean(values) for values in images):.3f}",
        ]


def main() -> int:
    """Measure what is missing and print the tables."""
    parser = parser_for("alignment", __doc__)
    parser.add_argument("--as-it-is", action="store_true", help="measure nothing, show what is there")
    parser.add_argument("--only", default="", metavar="TEXT", help="only combinations with this in their names")
    parser.add_argument("--base", default=IMAGE, help="id or folder of the pipeline")
    options = parser.parse_args()
    bench, parts = Bench(options.base), []
    for seed in () if options.as_it_is else SEEDS:
        for names in COMBINATIONS:
            if options.only in " + ".join(names):
                bench.measure(names, seed)
    for names in COMBINATIONS:
        head = ["", "text", "sd over seeds", "text, held out", *(f"image, {name}" for name in names), "image, mean"]
        if rows := list(lines(bench.kept.known(), " + ".join(names))):
            parts.append(f"{' + '.join(names)}:\n\n{table(head, rows)}")
    parts.append(
        f"Cosines by the built-in contrastive model, at least {PICTURES} pictures, 20 steps; prompts name the subject. Text: with the "
        "caption that names subject and style (with two styles the subject only); held out: pairs of them that no training saw. "
        f"Image: with the pictures that each LoRA learnt from. {machine()}."
    )
    return finish("alignment", "\n\n".join(parts), [], options.write)


if __name__ == "__main__":
    sys.exit(main())
