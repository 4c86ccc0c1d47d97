"""The Compare tab's settings as they come from the page: what they make, and the recipe of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from backends.image import Drawing
from backends.text import Sampling
from components import kinds
from components.compare import aligning, drawing, plan
from components.compare.comparison import Scored
from components.compare.plan import Plan, Wanted
from components.compare.tab import AXES, chosen_columns, chosen_of, read_prompts, sampling
from components.library.shelf import shelf
from components.session.remembered import AxesOf, Remembered, WritingOf, remember, variant_of
from components.session.state import Session, columns


@dataclass(frozen=True)
class Form:
    """The tab's settings as they come from the page, in the order of `CompareTab.settings`."""

    mode: str
    ids: Sequence[str]
    x: str
    x_values: str
    y: str
    y_values: str
    subject: str
    prompts: str
    length: float
    temperature: float
    seed: float | None
    format: str
    against: str
    blind: bool
    scores: tuple[Scored, ...]
    drawing: tuple[Any, ...]
    judge: str

    @classmethod
    def of(cls, values: tuple[Any, ...]) -> Form:
        """From the values of the components; a box that was never shown has none."""
        *own, judge = values
        texts = len(cls.__dataclass_fields__) - 2
        form = cls(*own[:texts], tuple(own[texts:]), judge)
        typed = {name: getattr(form, name) or "" for name in ("x", "x_values", "y", "y_values", "prompts")}
        return replace(form, **typed)

    def suiting(self, base: str, suited: str | None) -> Form:
        """With the settings that suit a base, where it has just been loaded and the page does not show them yet."""
        found, judge = drawing.suiting(base, suited, self.drawing, self.judge)
        return replace(self, drawing=found, judge=judge)

    def knowing(self, session: Session, known: Sequence[str]) -> Form:
        """With the variants that a session has by now beside the ``known`` ones, where the page does not offer them yet."""
        return replace(self, ids=chosen_of(columns(kinds.own(session), shelf(session)), self.ids, known))

    def wanted(self, draws: bool) -> Sampling | Drawing:
        """How texts or pictures are made, inside the page's limits."""
        return drawing.read(*self.drawing) if draws else sampling(self.length, self.temperature, self.seed, self.format)

    def plan(self, session: Session, draws: bool) -> Plan:
        """What is to be compared.

        Raises:
            AdapterError: when something is missing, too much, or an axis is bad.
        """
        prompts, wanted = read_prompts(self.prompts), self.wanted(draws)
        seeds = wanted.seeds if isinstance(wanted, Drawing) else ()
        if self.mode != AXES:
            return plan.side_by_side(chosen_columns(session, self.ids, len(prompts)), prompts, seeds)
        every = columns(kinds.own(session), shelf(session))
        subject = next((column for column in every if column.id == self.subject), every[0])
        sides = Wanted(self.x, self.x_values), Wanted(self.y, self.y_values)
        chosen = chosen_columns(session, self.ids, 1) if "variant" in (self.x, self.y) else []
        settings = {} if draws else {"temperature": float(self.temperature), "seed": int(self.seed or 0)}
        return plan.of_axes(session, sides, subject, chosen, prompts, seeds, settings)

    def recipe(self, session: Session, draws: bool) -> Remembered:
        """The recipe of a session with these settings.

        Raises:
            AdapterError: when one of them is not what it should be.
        """
        every = columns(kinds.own(session), shelf(session))
        compared = [column for column in every if column.id in self.ids] or every[:1]
        axes = None
        if self.mode == AXES:
            subject = next((variant_of(column) for column in every if column.id == self.subject), None)
            sides = {name: getattr(self, name) for name in ("x", "x_values", "y", "y_values")}
            axes = AxesOf(**sides, subject=subject)
        drawn, written = drawing.read(*self.drawing), sampling(self.length, self.temperature, self.seed, self.format)
        settings = drawing.settings_of(drawn) | ({} if draws else {"guidance": None})
        length, heat = written.max_new_tokens, written.temperature
        writing = WritingOf(length=length, temperature=heat, seed=written.seed, format=self.format)
        prompts = read_prompts(self.prompts) if self.prompts.strip() else []
        judge = None if not draws or self.judge == aligning.usual(session.base) else self.judge
        return remember(session, compared, prompts, settings, drawn.seeds, writing, axes, judge)
