"""Make the points of a sweep: each a folder that is there complete or not at all, and a line of one table."""

from __future__ import annotations

import csv
import glob
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from lego.adapter import Adapter
from lego.card import cell
from lego.errors import AdapterError
from lego.recipe import Recipe, Source, read_text
from lego.report import spread
from lego.run import merge_opened
from lego.sources import Fetch, open_sources
from lego.sweep import Point, Sweep, essence
from lego.verify import read_report
from lego.write import RECIPE, REPORT

SCORES = "scores.json"

# One line of the table by column.
Row = dict[str, Any]


@dataclass(frozen=True)
class Scorer:
    """How points are scored: ``score(folder)`` gives columns of the table; ``of`` tells these rows and this base from others."""

    score: Callable[[Path], Row]
    of: Mapping[str, Any]


@dataclass(frozen=True)
class Settings:
    """What all points have in common; it travels to the workers of a cluster.

    Attributes:
        out: the sweep's folder.
        folder: what relative paths are relative to.
        device: where merges are computed.
        fetch: opens sources from the hub.
        scorer: where points are to be scored.
    """

    out: Path
    folder: Path
    device: str = "cpu"
    fetch: Fetch | None = None
    scorer: Scorer | None = None


def run_sweep(
    sweep: Sweep,
    settings: Settings,
    each: Callable[[Point, Row], None] | None = None,
    ray: str | None = None,
) -> list[Row]:
    """Make every point that is not there, and the table. It may be stopped or killed at any time and started again.

    Args:
        sweep: the points.
        settings: what they have in common.
        each: told every point and its line as it is done.
        ray: the address of a Ray cluster, or ``local``; here and one after the other unless given.

    Returns:
        The table's lines, in the order of the points.

    Raises:
        AdapterError: when a source is missing, a point cannot be made, or the folder holds points of another recipe.
    """
    settings = replace(settings, out=settings.out.absolute(), folder=settings.folder.absolute())
    points = pinned(sweep, settings)
    lines: dict[str, Row] = {}
    with locked(settings.out):
        if ray is None:
            results: Iterable[tuple[Point, Row]] = ((point, make_point(point, settings)) for point in points)
        else:
            from lego import sweep_ray

            results = sweep_ray.make_points(points, settings, ray)
        for point, line in results:
            lines[point.name] = line
            write_table([lines[known.name] for known in points if known.name in lines], settings.out)
            if each:
                each(point, line)
        clean(settings.out, points)
    return [lines[point.name] for point in points]


def pinned(sweep: Sweep, settings: Settings) -> list[Point]:
    """The points with their sources' commits and hashes, so that all merge the same files wherever and whenever they are made."""
    adapters = open_cached(places(sweep.points[0].recipe), settings.folder, settings.fetch)

    def pin(source: Source, adapter: Adapter) -> Source:
        commit = {"revision": adapter.origin.partition("@")[2]} if adapter.origin else {}
        return source.model_copy(update={"sha256": adapter.sha256, **commit})

    def pin_all(recipe: Recipe) -> Recipe:
        sources = [pin(source, adapter) for source, adapter in zip(recipe.sources, adapters, strict=True)]
        return recipe.model_copy(update={"sources": sources})

    return [replace(point, recipe=pin_all(point.recipe)) for point in sweep.points]


def places(recipe: Recipe) -> tuple[str, ...]:
    """The sources without their weights."""
    return tuple(source.model_dump_json(exclude={"weight"}) for source in recipe.sources)


@lru_cache(maxsize=1)
def open_cached(found: tuple[str, ...], folder: Path, fetch: Fetch | None) -> list[Adapter]:
    """The sources, opened and hashed once a process."""
    return open_sources([Source.model_validate_json(text) for text in found], folder, fetch)


def make_point(point: Point, settings: Settings) -> Row:
    """Make a point unless it is there, score it unless that is done, and give its line of the table.

    Raises:
        AdapterError: when it cannot be made, or its folder holds another merge.
    """
    target = settings.out / point.name
    if not target.exists():
        adapters = open_cached(places(point.recipe), settings.folder, settings.fetch)
        merge_opened(point.recipe, adapters, target, device=settings.device)
    check_same(point, target)
    return line_of(point, target, scores_of(target, settings.scorer) if settings.scorer else {})


def check_same(point: Point, target: Path) -> None:
    """Refuse a folder that holds another merge than the point asks for.

    Raises:
        AdapterError: naming the folder.
    """
    if not (target / RECIPE).is_file():
        raise AdapterError("is in the way: it is no point of a sweep", target, "Choose another folder for the sweep.")
    there, wanted = Recipe.read(target / RECIPE), point.recipe
    # What a sweep leaves open was decided by its sources, whose hashes are part of the essence.
    given = [(there.output.format, wanted.output.format), (there.base_model, wanted.base_model)]
    if essence(there) != essence(wanted) or any(asked not in (None, made) for made, asked in given):
        raise AdapterError("holds a point of another recipe", target, "Choose another folder, or remove this one.")


def scores_of(target: Path, scorer: Scorer) -> Row:
    """A point's scores, from its folder or made and kept there.

    Raises:
        AdapterError: when the file that is there holds no scores.
    """
    file = target / SCORES
    if file.is_file():
        try:
            known = json.loads(read_text(file))
            if known["of"] == dict(scorer.of):
                return dict(known["scores"])
        except (ValueError, TypeError, KeyError) as error:
            raise AdapterError("holds no scores", file, "Remove it, and the point is scored again.") from error
    scores = scorer.score(target)
    write_whole(file, json.dumps({"of": dict(scorer.of), "scores": scores}, indent=1) + "\n")
    return scores


def line_of(point: Point, target: Path, scores: Row) -> Row:
    """A point's line of the table, from its report."""
    report = read_report(target / REPORT)
    size = sum(file.stat().st_size for file in target.glob("*.safetensors"))
    ranks = spread([report.rank_min, report.rank_max])
    return {
        **point.values,
        "rank of the merge" if "rank" in point.values else "rank": ranks,
        "relative error": report.relative_error,
        "norm ratio": report.norm_ratio,
        "cosine": report.cosine,
        "seconds": report.seconds,
        "bytes": size,
        **scores,
        "folder": target.name,
    }


def write_table(lines: Sequence[Row], out: Path) -> None:
    """``table.csv`` with every digit, ``table.md`` with four."""
    head = list(lines[0])
    text = io.StringIO()
    writer = csv.DictWriter(text, head, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    write_whole(out / "table.csv", text.getvalue())
    write_whole(out / "table.md", markdown(lines))


def markdown(lines: Sequence[Row]) -> str:
    """The table for people."""
    head = list(lines[0])
    rows = [[f"{value:.4g}" if isinstance(value, float) else str(value) for value in line.values()] for line in lines]
    return "".join(f"| {' | '.join(map(cell, cells))} |\n" for cells in (head, ["---"] * len(head), *rows))


def write_whole(path: Path, text: str) -> None:
    """Write a file under a temporary name and rename it."""
    scratch = path.with_name(f".{path.name}.tmp")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)


def clean(out: Path, points: Sequence[Point]) -> None:
    """Remove what merges that were killed, here or on another machine, left: their folders under temporary names."""
    for point in points:
        for left in out.glob(f".{glob.escape(point.name)}.*"):
            shutil.rmtree(left, ignore_errors=True)


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """The sweep's folder, made where it is missing and kept from other sweeps meanwhile.

    Raises:
        AdapterError: when it cannot be written, or another sweep runs in it.
    """
    from filelock import FileLock, Timeout

    try:
        out.mkdir(parents=True, exist_ok=True)
        with FileLock(out / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise AdapterError("another sweep is running in it", out, "Wait for it, or choose another folder.") from error
    except OSError as error:
        raise AdapterError(f"cannot be written ({error.strerror})", out) from error
