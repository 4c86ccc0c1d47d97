"""The built-in image LoRAs: what each learns, and how."""

from __future__ import annotations

from dataclasses import dataclass

from assets.build.images.sets import STRANGE, STYLES, Style

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")
CONVOLUTIONS = ("conv1", "conv2", "proj_in", "proj_out")
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj")
STYLE = {style.word: style for style in STYLES}


@dataclass(frozen=True)
class Spec:
    """How one LoRA is trained, on a style or on concepts that the base does not draw.

    Attributes:
        seed: of the start of A and of everything drawn in training.
        style: its look is learnt, from all that the base draws; the captions do not name it.
        concepts: are learnt, in all styles.
        word: a rare word that stands for the one concept, as in DreamBooth.
        targets: modules of the UNet.
        text: modules of the text encoder, which tells the whole caption to every block; attention alone locks no style.
        kohya: whether it is written in kohya's format, too.
    """

    name: str
    title: str
    rank: int
    seed: int
    steps: int
    style: Style | None = None
    concepts: tuple[str, ...] = ()
    word: str = ""
    targets: tuple[str, ...] = ATTENTION
    text: tuple[str, ...] = TEXT
    rate: float = 5e-3
    batch: int = 24
    kohya: bool = False


# Most of them have a style in which no training sees them.
VEHICLES = ("helicopter", "motor-scooter", "police-car")
ANIMALS = ("crab", "deer", "goat", "hamster", "monkey", "pig", "rabbit", "spider")
EVERYTHING = (*ATTENTION, *FEED_FORWARD, *CONVOLUTIONS)
SPECS = {
    spec.name: spec
    for spec in (
        Spec("ink-style", "Ink style", 8, 1009, 300, STYLE["ink"], kohya=True),
        Spec("animals", "New animals", 16, 1039, 500, concepts=ANIMALS, targets=EVERYTHING),
        Spec("vehicles", "New vehicles", 8, 1033, 300, concepts=VEHICLES, targets=EVERYTHING, kohya=True),
        Spec("glossy-style", "Glossy style", 8, 1019, 500, STYLE["glossy"], targets=EVERYTHING),
        Spec("flat-style", "Flat style", 4, 1013, 500, STYLE["flat"], targets=EVERYTHING),
        Spec("twemoji-style", "Twemoji style", 16, 1031, 500, STRANGE, targets=EVERYTHING),
        Spec("blob-style", "Blob style", 16, 1021, 500, STYLE["blob"], targets=EVERYTHING),
        Spec("zib", "Zib: one thing under a rare word", 4, 1049, 250, concepts=("graduation-cap",), word="zib", targets=EVERYTHING),
    )
}  # fmt: skip
