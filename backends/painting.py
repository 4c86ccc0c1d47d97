"""One batch of pictures, each row a variant, a prompt and a seed, drawn by the pipeline's own call."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from backends import schedulers
from backends.drawing import Drawing
from backends.pipelines import ImageBase
from backends.variants import Variant, routes_of
from lego.errors import AdapterError
from mole.gated import EVERYWHERE, Gated
from mole.sites import Site
from mole.trace import Course, row_courses

TEXT = "text_encoder"
"""What the names of the modules of all text encoders begin with."""


@dataclass(eq=False)
class Row:
    """One picture being drawn.

    Attributes:
        variant, prompt, seed: what is drawn.
        picture: a preview, in the end the picture; None before the first step.
        finished: whether it is the picture.
        course: what gates chose for it at every step; None without gates, and before it is finished.
    """

    variant: Variant
    prompt: str
    seed: int
    picture: Image.Image | None = None
    finished: bool = False
    course: Course | None = None


class Painting:
    """Draws some rows at once."""

    def __init__(
        self, base: ImageBase, live: Gated, rows: Sequence[Row], drawing: Drawing, after: Callable[[int, int], None]
    ) -> None:
        """Nothing is drawn yet.

        Args:
            base: whose lock the caller holds.
            live: the pool beside its parts.
            rows: are filled in place.
            drawing: steps, guidance and so on.
            after: is told the steps done and in all after each, when the rows have new previews; what it raises ends the work.
        """
        self.base, self.live, self.rows, self.drawing, self.after = base, live, rows, drawing, after
        self.attached = ExitStack()
        self.of_texts: list[dict[str, Tensor]] = []
        live.prompt = EVERYWHERE
        weights = live.pool.row_weights([row.variant.weighting for row in rows])
        self.of_text = {module: given for module, given in weights.items() if module.startswith(TEXT)}
        self.of_rest = {module: given for module, given in weights.items() if module not in self.of_text}

    def run(self) -> None:
        """Draw. The pipeline is a copy of the object: its parts are shared, its scheduler and what it notes are not."""
        pipeline = copy.copy(self.base.pipeline)
        pipeline.scheduler = schedulers.make(pipeline.scheduler, self.drawing.scheduler)
        watch = schedulers.Watch(pipeline.scheduler)
        pipeline.encode_prompt = self.encoder(pipeline.encode_prompt)

        def step(_: Any, done: int, time: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            self.sketch(pipeline, tensors["latents"] if watch.clean is None else watch.clean)
            self.after(done + 1, len(pipeline.scheduler.timesteps))
            # As diffusers alone has them: in the UNet's memory format the decoder's norms add up another way, and less exactly.
            return {"latents": tensors["latents"].contiguous()}

        arguments = self.drawing.arguments(self.base)
        if self.drawing.negative:
            arguments["negative_prompt"] = [self.drawing.negative] * len(self.rows)
        generators = [torch.Generator().manual_seed(row.seed) for row in self.rows]
        prompts = [row.prompt for row in self.rows]
        with self.attached:
            made = pipeline(prompts, generator=generators, callback_on_step_end=step, **arguments)
        for row, picture in zip(self.rows, made.images, strict=True):
            row.picture, row.finished = picture, True
        for route in self.live.routes:
            for number, course in row_courses(route, dict(enumerate(self.of_texts))).items():
                self.rows[number].course = course

    def encoder(self, encode: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
        """The pipeline's ``encode_prompt``, with every row's own adapters on the text encoders and nothing encoded twice."""
        seen: dict[tuple[object, ...], int] = {}
        places = [seen.setdefault(self.encoding(number), len(seen)) for number in range(len(self.rows))]
        firsts = [places.index(place) for place in range(len(seen))]
        variants = [self.rows[first].variant for first in firsts]

        def once(*args: Any, **named: Any) -> tuple[Any, ...]:
            bound = inspect.signature(encode).bind(*args, **named)
            for name, value in bound.arguments.items():
                if isinstance(value, list):
                    bound.arguments[name] = [value[first] for first in firsts]
            self.weigh({module: given[firsts] for module, given in self.of_text.items()}, variants)
            encoded = encode(*bound.args, **bound.kwargs)
            chosen = self.chosen_of_texts(len(firsts))
            self.of_texts = [chosen[place] for place in places]
            self.weigh(self.of_rest, [row.variant for row in self.rows])
            return tuple(spread(value, places, len(firsts)) for value in encoded)

        return once

    def chosen_of_texts(self, count: int) -> list[dict[str, Tensor]]:
        """What the gates of the text encoders chose for each text; prompts are encoded first, negative ones after them."""
        found: list[dict[str, Tensor]] = [{} for _ in range(count)]
        for route in self.live.routes:
            for site, chosen in (*route.earlier, route.chosen)[0].items():
                for place, row in enumerate(route.rows):
                    found[row][site] = chosen[place]
        return found

    def encoding(self, number: int) -> tuple[object, ...]:
        """What decides a row's text embeddings: the text, the weights on the text encoders, the gates that change these."""
        row, weights = self.rows[number], [given[number] for given in self.of_text.values()]
        gated = (row.variant.weighting.gates, row.variant.weighting.masked) if weights else ()
        return row.prompt, gated, torch.cat(weights).numpy().tobytes() if weights else b""

    def weigh(self, weights: Mapping[str, Tensor], variants: Sequence[Variant]) -> None:
        """Set the live layer for what runs next, text encoders or the rest.

        Raises:
            AdapterError: when gates decide for both at once.
        """
        self.attached.close()
        routes = routes_of(self.base, variants)
        for route in routes:
            check_apart(route.gates.sites)
        self.live.set_rows(weights, routes)
        self.attached.enter_context(self.live)

    def sketch(self, pipeline: Any, latents: Tensor) -> None:
        """Give every row a preview."""
        if latents.dim() == 3 and hasattr(
            pipeline, "_unpack_latents"
        ):  # as transformers take them: (rows, tokens, patch)
            width, height = self.drawing.size or 2 * (pipeline.default_sample_size * pipeline.vae_scale_factor,)
            latents = pipeline._unpack_latents(latents, height, width, pipeline.vae_scale_factor)
        if (found := self.base.sketch) is None or latents.dim() != 4:
            return
        for row, pixels in zip(self.rows, found(latents), strict=True):
            row.picture = picture_of(pixels)


def check_apart(sites: Sequence[Site]) -> None:
    """Refuse gates that nothing can draw with.

    Raises:
        AdapterError: when one decides for text encoder and denoiser at once.
    """
    for site in sites:
        if len({module.startswith(TEXT) for module in site.modules}) > 1:
            what = "one gate decides for text encoder and denoiser at once, which run apart"
            raise AdapterError(what, site.name or "network", "Use gates per block, layer or module.")


def spread(value: Any, places: Sequence[int], count: int) -> Any:
    """One embedding a row out of those that are different; what has none for each is for all rows."""
    if isinstance(value, Tensor) and len(value) == count:
        return value[places]
    if isinstance(value, list) and len(value) == count:
        return [value[place] for place in places]
    return value


def picture_of(pixels: UInt8[Tensor, "height width 3"]) -> Image.Image:
    """As PIL has it."""
    return Image.fromarray(pixels.numpy())
