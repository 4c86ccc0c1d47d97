"""Adapters as cards: what each is, what it scored, whether it fits the base, and its weight while it is picked."""

from __future__ import annotations

import base64
from functools import lru_cache
from html import escape
from typing import Any

from backends import bases, library
from backends.library import Entry
from components import fragments, kinds
from components.library.shelf import shelf
from components.palette import adapter_colour
from components.session.state import Session, title_of
from components.work import loading, peek
from lego.report import spread

LOWEST, HIGHEST = -2.0, 3.0
GROUPS = {"built-in": "Built in", "folder": "Added", "upload": "Added", "hub": "Added", "merge": "Made here"}
SAMPLE = "sample.png"
OURS = ("built-in", "merge")
METRICS = {
    "exact_match": "exact answers",
    "nll": "nats per answer token",
    "in its style": "pictures in its style",
    "the concept's caption first among 100": "pictures recognised among 100 captions",
}


def misfit(session: Session, entry: Entry) -> str | None:
    """Why an adapter does not fit the session's base, in one sentence; None where it fits or the base is not loaded yet."""
    coming = peek(session.base)
    if coming is None or not coming.done or coming.error is not None:
        return None
    return library.fits(entry, _shapes(coming.id))


@lru_cache(maxsize=4)
def _shapes(base_id: str) -> dict[str, tuple[int, ...]]:
    return bases.module_shapes(loading(base_id).base())


def draw(session: Session) -> str:
    """All cards that the session may pick from, grouped by where they come from; what was added stays, whatever the base."""
    groups: dict[str, list[str]] = {}
    kind, entries = kinds.of_base(session.base), shelf(session).values()
    shown = [entry for entry in entries if entry.source not in OURS or kinds.suits(entry.key, kind)]
    for entry in shown:
        groups.setdefault(GROUPS.get(entry.source, "Added"), []).append(card(session, entry))
    order = [name for name in dict.fromkeys(GROUPS.values()) if name in groups]
    body = "".join(
        f'<div class="by-group">{name}</div><div class="by-cards">{"".join(groups[name])}</div>' for name in order
    )
    if others := sum(entry.source == "built-in" and entry not in shown for entry in entries):
        what = "pictures" if kind == kinds.TEXT else "texts"
        body += f'<div class="by-rest">{fragments.subtle(f"{others} more built-in adapters are for a base that makes {what}.")}</div>'
    return body


def card(session: Session, entry: Entry) -> str:
    """One adapter. The whole face is a checkbox; the weight appears below it while the adapter is picked."""
    pick, why = session.pick(entry.key), misfit(session, entry)
    title = escape(title_of(session, entry))
    look = "picked" if pick else "unfit" if why else ""
    colour = f' style="--card:{adapter_colour(pick.slot)}"' if pick else ""
    blocked = " disabled" if why and not pick else ""
    facts = f'<div class="by-facts">{_facts(entry)}</div>'
    reason = f'<div class="by-why">{escape(why)}</div>' if why else ""
    told = escape(entry.task)
    task = f'<div class="by-task" title="{told}">{told}</div>' if told else ""
    picture = f'<img class="by-sample" src="{source}" alt="Sample of {title}">' if (source := sample(entry)) else ""
    checked = "true" if pick else "false"
    face = (
        f'<button type="button" class="by-face" role="checkbox" aria-checked="{checked}" aria-label="{title}"{blocked}>'
        f'<div class="by-name">{title}<span class="by-tick" aria-hidden="true">{"✓" if pick else ""}</span></div>'
        f"{picture}{task}{facts}{_score(entry)}{reason}</button>"
    )
    weight = _weight(title, pick.weight) if pick else ""
    return f'<div class="by-card {look}" data-key="{escape(entry.key)}"{colour}>{face}{weight}</div>'


@lru_cache(maxsize=64)
def sample(entry: Entry) -> str:
    """The sample picture that lies beside a built-in adapter, as an address; empty where there is none."""
    file = entry.path / SAMPLE
    if entry.source != "built-in" or not file.is_file():
        return ""
    return f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"


def _facts(entry: Entry) -> str:
    targets = ", ".join(entry.targets) if len(entry.targets) <= 3 else f"{len(entry.targets)} kinds"
    named = [("rank", spread(entry.ranks)), ("alpha", entry.alpha), ("on", targets)]
    every = escape(", ".join(entry.targets))
    pairs = "".join(f'<span title="{every}">{name} <b>{escape(value)}</b></span>' for name, value in named if value)
    return f"{pairs}<span>{fragments.size(entry.size_bytes)}</span><span>{escape(entry.origin or entry.source)}</span>"


def _score(entry: Entry) -> str:
    """What the adapter's card says it scores on held-out rows: the base's score, then its own."""
    facts: dict[str, Any] = entry.card.get("brickyard") or {}
    before, after, metric = facts.get("before"), facts.get("after"), str(facts.get("metric"))
    if not isinstance(before, int | float) or not isinstance(after, int | float) or metric not in METRICS:
        return ""
    share = metric != "nll"
    text = f"{before:.0%} → {after:.0%}" if share else f"{before:.2f} → {after:.2f}"
    bars = f'<i style="width:{after:.0%}"></i><i class="before" style="width:{before:.0%}"></i>' if share else ""
    track = f'<div class="by-track" aria-hidden="true">{bars}</div>' if share else ""
    title = "On held-out rows: the base alone, then with this adapter"
    return f'<div class="by-score" title="{title}">{METRICS[metric]} <b class="by-num">{text}</b>{track}</div>'


def _weight(title: str, weight: float) -> str:
    attributes = f'min="{LOWEST}" max="{HIGHEST}" step="0.05" value="{weight:g}"'
    return (
        f'<div class="by-weight"><span>Weight</span><input type="range" {attributes} aria-label="Weight of {title}">'
        f'<input type="number" {attributes} aria-label="Weight of {title} as a number"></div>'
    )
