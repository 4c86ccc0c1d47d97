"""Small pieces of HTML shared by the tabs. Everything that comes from a file or a person goes through ``escape``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from html import escape

from components.palette import NEUTRAL, adapter_colour
from mole.cli import clock

HALT = """
element.addEventListener('click', (event) => {
  const stop = event.target.closest('[data-halt]');
  if (!stop) return;
  [stop.disabled, stop.textContent] = [true, 'Stopping'];
  trigger('halt');
});
"""
"""For a component that shows a line with its Stop: a press is its event ``halt``."""
PRESS = "() => setTimeout(() => document.querySelector('#%s')?.click(), 100)"
"""JavaScript that presses a button by its id, once the page shows what has just come."""
STOP = '<button type="button" class="by-halt" data-halt>Stop</button>'


def swatch(slots: Sequence[int]) -> str:
    """The colours a thing is made of, laid side by side as bricks; grey where it is made of none."""
    colours = [adapter_colour(slot) for slot in slots] or [NEUTRAL]
    bricks = "".join(f'<i style="background:{colour}"></i>' for colour in colours)
    return f'<span class="by-swatch{" many" if len(colours) > 1 else ""}" aria-hidden="true">{bricks}</span>'


def legend(things: Iterable[tuple[str, Sequence[int]]]) -> str:
    """Names in a row, each behind its colours."""
    return (
        '<div class="by-legend by-row">'
        + "".join(f"<span>{swatch(slots)}{escape(name)}</span>" for name, slots in things)
        + "</div>"
    )


def edge(slots: Sequence[int]) -> str:
    """A CSS background of the same colours, for the edge of a column."""
    colours = [adapter_colour(slot) for slot in slots] or [NEUTRAL]
    return colours[0] if len(colours) == 1 else f"linear-gradient(90deg, {', '.join(_stops(colours))})"


def _stops(colours: Sequence[str]) -> Iterable[str]:
    share = 100 / len(colours)
    for i, colour in enumerate(colours):
        yield f"{colour} {i * share:.1f}% {(i + 1) * share:.1f}%"


def empty(title: str, help_text: str) -> str:
    """What stands where nothing is yet: what it is, and what to do."""
    return f'<div class="by-empty"><b>{escape(title)}</b>{escape(help_text)}</div>'


def subtle(text: str) -> str:
    """One quiet line of help."""
    return f'<p class="by-subtle">{escape(text)}</p>'


def heading(title: str, help_text: str = "") -> str:
    """A section's heading with, where needed, one line of help."""
    return f'<h2 class="by-h">{escape(title)}</h2>' + (subtle(help_text) if help_text else "")


def note(text: str) -> str:
    """A warning that belongs to a result."""
    return f'<div class="by-note">{escape(text)}</div>'


def left(seconds: float, share: float | None) -> str:
    """How long still takes what did this share in so many seconds; nothing where that cannot be told."""
    return f", about {clock(seconds / share * (1 - share))} left" if share and 0.02 < share < 1 else ""


def progress(text: str, fraction: float | None, halt: bool = False) -> str:
    """A line with a progress bar; ``fraction`` None means that the end is not known; with its Stop, if ``halt`` says so."""
    width = "" if fraction is None else f' style="width:{100 * min(1.0, max(0.0, fraction)):.0f}%"'
    value = "" if fraction is None else f' aria-valuenow="{100 * fraction:.0f}"'
    bar = f'<span class="by-bar{" unknown" if fraction is None else ""}"><i{width}></i></span>'
    line = f'<div class="by-progress" role="progressbar" aria-label="{escape(text)}"{value}>{bar}<span>{escape(text)}</span></div>'
    return f'<div class="by-halting">{line}{STOP}</div>' if halt else line


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], right: Iterable[int] = (), label: str = "", tall: bool = False
) -> str:
    """A table of ready-made (already escaped) cells; ``right`` are the columns of numbers, a ``tall`` one scrolls."""
    numbers = set(right)
    kind = [' class="r"' if i in numbers else "" for i in range(len(head))]
    top = "".join(f"<th{kind[i]}>{escape(name)}</th>" for i, name in enumerate(head))
    body = "".join("<tr>" + "".join(f"<td{kind[i]}>{c}</td>" for i, c in enumerate(row)) + "</tr>" for row in rows)
    name = f' aria-label="{escape(label)}"' if label else ""
    look = "by-scroll by-tall" if tall else "by-scroll"
    return f'<div class="{look}"><table class="by-table"{name}><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """A grid of a few numbers with their names."""
    cells = "".join(f"<div><small>{escape(name)}</small><b>{escape(value)}</b></div>" for name, value in pairs)
    return f'<div class="by-facts-grid">{cells}</div>'


def size(count: int) -> str:
    """Bytes as people say them."""
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.0f} kB"


WORDS = re.compile(r"\w+(?:['’]\w+)*|\s+|[^\w\s]+")


def mark_differences(text: str, base: str) -> str:
    """The text as HTML with the words marked that are not in the base's text at that place; punctuation alone is no difference."""
    from difflib import SequenceMatcher

    words, theirs = WORDS.findall(text), WORDS.findall(base)
    result = []
    for what, _, _, start, end in SequenceMatcher(None, theirs, words, autojunk=False).get_opcodes():
        piece = "".join(words[start:end])
        differs = what != "equal" and any(character.isalnum() for character in piece)
        result.append(f"<mark>{escape(piece)}</mark>" if differs else escape(piece))
    return "".join(result)


def pick(origin: str, value: object, label: str, current: bool = False, look: str = "by-pick", inner: str = "") -> str:
    """A button that selects units: ``origin`` says what the value is; ``inner`` is ready-made HTML in place of the label."""
    mark = ' aria-current="true"' if current else ""
    name = f' aria-label="{escape(label)}"' if inner else ""
    return (
        f'<button type="button" class="{look}" data-origin="{origin}" data-value="{escape(json.dumps(value))}"'
        f"{name}{mark}>{inner or escape(label)}</button>"
    )
