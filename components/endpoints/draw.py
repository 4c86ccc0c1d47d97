"""The endpoint that draws: what `/compare` is for texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from components import kinds
from components.compare import drawing, export, plan, running
from components.compare.gallery import Gallery
from components.endpoints import adapters as endpoints
from components.library.shelf import builtin_base, checked_base
from components.messages import told
from components.session import remembered
from components.work import loading
from lego import AdapterError


@told
def draw_pictures(
    variants: list[dict],
    prompts: list[str],
    base: str = "",
    steps: int = 20,
    guidance: float | None = None,
    seeds: list[int] | None = None,
    scheduler: str = "",
    negative: str = "",
    size: list[int] | None = None,
    judge: str = "",
    recipe: bool = True,
) -> dict:
    """Let several variants of a base draw the same prompts from the same noise, in one batch.

    Gives {base, prompts, seeds, variants: [{name, adapters, pictures: [prompt][seed]}], sheet, archive, seconds}; pictures, the
    sheet (PNG) and the archive (zip) are files. Example: client.predict([{"name": "base"}, {"name": "two", "adapters": {"KEY": 1}}],
    ["a red fox"], seeds=[0, 1], api_name="/draw")

    Args:
        variants: as /compare takes them.
        prompts: the prompts.
        base: the built-in model that draws unless given.
        steps: of denoising.
        guidance: how strictly prompts are followed; what suits the base unless given.
        seeds: of the noise, shared by all variants.
        scheduler: the pipeline's own unless given.
        negative: what the pictures should not show.
        size: [width, height]; the pipeline's own unless given.
        judge: a contrastive model that scores the pictures: "built-in", or a CLIP's hub id.
        recipe: whether sheet and archive carry the recipe of the comparison in their metadata.
    """
    prompts = endpoints.checked_prompts(prompts)
    noise = [0] if seeds is None else seeds
    if not isinstance(noise, list) or not all(isinstance(seed, int) for seed in noise):
        raise AdapterError("seeds must be a list of whole numbers")
    if size is not None and (not isinstance(size, list) or len(size) != 2):
        raise AdapterError("size must be [width, height]")
    sides = " × ".join(map(str, size or ()))
    columns = endpoints.columns_of(variants, len(prompts))
    wanted = drawing.read(steps, guidance, ", ".join(map(str, noise)), str(scheduler), str(negative), sides)
    base_id = checked_base(base) if base else builtin_base(kinds.IMAGE)
    if loading(base_id).base().info.kind != kinds.IMAGE:
        raise AdapterError("writes texts", base_id, "Call /compare, or name a base that draws.")
    *_, (_, found) = running.pictures(base_id, plan.side_by_side(columns, prompts, wanted.seeds), wanted, str(judge))
    return _told(found, bool(recipe))


def _told(found: Gallery, recipe: bool) -> dict[str, Any]:
    sheet, archive = export.gallery_files(found, remembered.of_gallery(found) if recipe else None)
    facts = {"base": found.base, **dict(found.settings), "prompts": list(found.prompts), "seeds": list(found.seeds)}
    return {
        **facts,
        "variants": [_variant(found, v) for v in range(len(found.names))],
        "sheet": _file(sheet),
        "archive": _file(archive),
        "seconds": round(found.seconds, 3),
    }


def _variant(found: Gallery, v: int) -> dict[str, Any]:
    adapters = [{"key": key, "weight": weight} for key, weight in found.weightings[v].adapters]
    told: dict[str, Any] = {"name": found.names[v], "adapters": adapters}
    told["pictures"] = [[_file(Path(file)) for file in row] for row in found.files[v]]
    if found.scores:
        told["text_alignment"] = [[score.text for score in row] for row in found.scores[v]]
    return told


def _file(path: Path) -> dict[str, Any]:
    return {"path": str(path), "orig_name": path.name, "meta": {"_type": "gradio.FileData"}}


def register() -> None:
    """Make the endpoint; call inside the page's Blocks."""
    gr.api(draw_pictures, api_name="draw", concurrency_limit=1, concurrency_id="model")
