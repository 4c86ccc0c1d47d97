"""Blind judging: two columns side by side in random order, their names hidden until the vote, then a running tally.

Which column stands where is drawn from a seed that stays on the server: until the vote the page holds the two texts or pictures
and nothing that tells them apart.
"""

from __future__ import annotations

import random
import secrets
from dataclasses import dataclass, replace
from html import escape
from itertools import combinations
from typing import Any

import gradio as gr

from components import fragments
from components.compare import export, pictures, votes
from components.compare.comparison import Comparison
from components.compare.gallery import Gallery
from components.compare.votes import CHOICES, Choice, Vote
from components.events import ALONE
from components.messages import told
from lego import AdapterError

LABELS: dict[Choice, str] = {
    "left": "Left is better",
    "right": "Right is better",
    "tie": "Tie",
    "both bad": "Both are bad",
}
HOW = (
    "How each would do against an average one (Bradley–Terry): a tie and “both are bad” count as half a win for each, strengths "
    f"have a normal prior of {votes.PRIOR:g} log odds, intervals are 95 % (Laplace)."
)


@dataclass(frozen=True)
class Pair:
    """Two columns at one prompt and seed: indices."""

    left: int
    right: int
    prompt: int
    seed: int = 0


@dataclass(frozen=True)
class Ballot:
    """The pairs of one comparison in the order of voting, and where the voter is.

    Attributes:
        pairs: all that are voted on.
        at: the one that is shown; after the last one their number.
        choice: the vote on it; None before.
    """

    pairs: tuple[Pair, ...]
    at: int = 0
    choice: Choice | None = None

    @property
    def pair(self) -> Pair | None:
        """The one that is shown; None after the last."""
        return self.pairs[self.at] if self.at < len(self.pairs) else None


@dataclass(frozen=True)
class BlindBox:
    """The components of the section that events need."""

    panel: gr.Column
    pair: gr.HTML
    choices: list[gr.Button]
    following: gr.Button
    reveal: gr.Button
    judged: gr.State
    ballot: gr.State
    cast: gr.State
    result: gr.Column
    tally: gr.HTML
    save: gr.DownloadButton
    clear: gr.Button

    @property
    def shown(self) -> list[Any]:
        """What ``show`` sets."""
        return [self.panel, self.pair, *self.choices, self.following]


def create() -> BlindBox:
    """Lay the section out; nothing is wired yet."""
    with gr.Column(visible=False, elem_classes="plain") as panel:
        pair = gr.HTML(label="Blind pair")
        with gr.Row(elem_classes="by-actions"):
            choices = [gr.Button(LABELS[choice], interactive=False, min_width=130) for choice in CHOICES]
            following = gr.Button("Next pair", variant="primary", interactive=False, min_width=130)
            reveal = gr.Button("Reveal all", min_width=130)
    with gr.Column(visible=False, elem_classes="plain") as result:
        tally = gr.HTML(label="Tally")
        with gr.Row(elem_classes="by-actions"):
            save = gr.DownloadButton("Votes (CSV)", scale=0, min_width=150)
            clear = gr.Button("Clear the votes", scale=0, min_width=150)
    states = gr.State(None), gr.State(None), gr.State(())
    return BlindBox(panel, pair, choices, following, reveal, *states, result, tally, save, clear)


def ballot(columns: int, prompts: int, seeds: int, seed: int | None = None) -> Ballot:
    """All pairs of columns at all prompts and seeds, in random order, each with a random left and right.

    Args:
        columns, prompts, seeds: how many.
        seed: of all that is random; one that nobody knows unless given.

    Raises:
        AdapterError: when there is no pair.
    """
    if columns < 2:
        raise AdapterError("one column makes no pair", None, "Choose at least two variants to judge blind.")
    seed = secrets.randbits(64) if seed is None else seed
    found = [
        Pair(*random.Random(f"{seed}/{i}/{j}/{p}/{s}").sample((i, j), 2), p, s)
        for i, j in combinations(range(columns), 2)
        for p in range(prompts)
        for s in range(max(1, seeds))
    ]
    random.Random(seed).shuffle(found)
    return Ballot(tuple(found))


def content(found: Comparison | Gallery, column: int, pair: Pair) -> str:
    """What one side shows; empty before it has begun."""
    if isinstance(found, Comparison):
        return found.texts[column][pair.prompt] or ("—" if found.ended[column][pair.prompt] else "")
    return found.shots[column][pair.prompt][pair.seed]


def draw(given: Ballot, found: Comparison | Gallery) -> str:
    """The pair that is shown: nameless before the vote, with its names after it."""
    pair = given.pair
    if pair is None:
        return fragments.empty("All pairs are judged", "Reveal all shows them with their names.")
    prompt = found.prompts[pair.prompt]
    if isinstance(found, Gallery):
        prompt += f", seed {found.seeds[pair.seed]}"
    sides = "".join(_side(given, found, side) for side in ("left", "right"))
    count = f"Pair {given.at + 1} of {len(given.pairs)}"
    return f'<p class="by-subtle">{count}: {escape(prompt)}</p><div class="by-columns by-blind">{sides}</div>'


def _side(given: Ballot, found: Comparison | Gallery, side: str) -> str:
    pair = given.pair
    assert pair is not None
    column = pair.left if side == "left" else pair.right
    label, edge = side.capitalize(), fragments.edge(())
    if given.choice is not None:
        label, edge = f"{label}: {found.names[column]}", fragments.edge(found.slots[column])
    voted = " ✓" if given.choice in (side, "tie") else ""
    shot = content(found, column, pair)
    if isinstance(found, Comparison):
        body = (
            f'<p class="by-text">{escape(shot)}</p>'
            if shot
            else '<p class="by-text"><span class="by-cursor"></span></p>'
        )
    elif shot:
        source = shot if shot.startswith("data:") else pictures.address(shot)
        body = f'<img src="{escape(source)}" alt="{side.capitalize()} picture">'
    else:
        body = '<span class="by-blank waiting"></span>'
    return (
        f'<section class="by-column" aria-label="{side.capitalize()}"><i class="by-edge" style="background:{edge}"></i>'
        f'<header><b>{escape(label)}{voted}</b></header><div class="by-cell">{body}</div></section>'
    )


def begun(given: Ballot, found: Comparison | Gallery | None) -> bool:
    """Whether both sides of the shown pair have something to judge."""
    pair = given.pair
    return pair is not None and found is not None and all(content(found, c, pair) for c in (pair.left, pair.right))


def show(given: Ballot | None, found: Comparison | Gallery | None) -> tuple[Any, ...]:
    """The section as it stands: the pair, and what can be pressed."""
    if given is None or found is None:
        return gr.Column(visible=given is not None), "", *(gr.Button(interactive=False),) * (len(CHOICES) + 1)
    ready = given.choice is None and begun(given, found)
    last = given.at + 1 >= len(given.pairs)
    buttons = [gr.Button(interactive=ready) for _ in CHOICES]
    return gr.Column(visible=True), draw(given, found), *buttons, gr.Button(interactive=bool(given.choice) and not last)


def vote(
    given: Ballot | None, found: Comparison | Gallery | None, cast: tuple[Vote, ...], choice: Choice
) -> tuple[Ballot | None, tuple[Vote, ...]]:
    """Cast a vote on the shown pair, once, as soon as both of its sides have begun."""
    if given is None or found is None or given.choice is not None or not begun(given, found):
        return given, cast
    pair = given.pair
    assert pair is not None
    seed = found.seeds[pair.seed] if isinstance(found, Gallery) else int(dict(found.settings).get("seed", 0))
    names = found.names[pair.left], found.names[pair.right]
    return replace(given, choice=choice), (*cast, Vote(found.prompts[pair.prompt], seed, *names, choice))


def following(given: Ballot | None) -> Ballot | None:
    """The next pair."""
    return given if given is None or given.choice is None else replace(given, at=given.at + 1, choice=None)


@told
def tallied(cast: tuple[Vote, ...]) -> tuple[Any, str, Any]:
    """The running tally of all votes, and its download."""
    if not cast:
        return gr.Column(visible=False), "", gr.skip()
    return gr.Column(visible=True), table(cast), gr.DownloadButton(value=str(export.votes_file(cast)))


def table(cast: tuple[Vote, ...]) -> str:
    """How all variants stand, the strongest first."""
    rows = []
    for standing in votes.tally(cast):
        share, low, high = map(votes.chance, (standing.strength, standing.low, standing.high))
        counts = [str(n) for n in (standing.wins, standing.losses, standing.ties, standing.bad)]
        rows.append([escape(standing.name), f"<b>{share:.0%}</b>", f"{low:.0%}–{high:.0%}", *counts])
    head = ["Variant", "Beats an average one", "95 %", "Won", "Lost", "Ties", "Both bad"]
    count = f"{len(cast)} vote{'s' if len(cast) > 1 else ''}. {HOW}"
    return fragments.heading("Votes", count) + fragments.table(head, rows, right=range(1, len(head)), label="Votes")


def cleared() -> tuple[Vote, ...]:
    """No votes."""
    return ()


def wire(box: BlindBox) -> None:
    """Connect voting; revealing belongs to the tab, which draws what was hidden."""
    for choice, button in zip(CHOICES, box.choices, strict=True):
        button.click(voter(choice), [box.ballot, box.judged, box.cast], [box.ballot, box.cast], **ALONE)
    box.following.click(following, [box.ballot], [box.ballot], **ALONE)
    for state in (box.ballot, box.judged):
        state.change(show, [box.ballot, box.judged], box.shown, **ALONE)
    box.cast.change(tallied, [box.cast], [box.result, box.tally, box.save], **ALONE)
    box.clear.click(cleared, None, [box.cast], **ALONE)


def voter(choice: Choice) -> Any:
    """What one of the four buttons does."""

    def press(given: Any, found: Any, cast: Any) -> Any:
        return vote(given, found, cast, choice)

    return press
