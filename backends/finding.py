"""Adapters on the hub, searched by the base that they adapt."""

from __future__ import annotations

from dataclasses import dataclass

from backends import builtin, hub
from backends.bases import BUILTIN, IMAGE
from lego.errors import AdapterError

MOST = 20
"""Adapters shown for one search: those with the most downloads."""
MOST_WORDS = 200


@dataclass(frozen=True)
class Found:
    """An adapter as the hub lists it.

    Attributes:
        id: owner/name.
        downloads: in the last 30 days.
        likes: of people.
        changed: the day of its last change, or empty.
        gated, private: whether not everyone may read it.
    """

    id: str
    downloads: int
    likes: int
    changed: str
    gated: bool
    private: bool


def hub_id(base: str) -> str | None:
    """Under which id the hub knows a base; None for a folder and for what only ships with the app."""
    if base == BUILTIN:
        return builtin.HUB_ID
    name = base.partition("@")[0]
    return name if base != IMAGE and hub.REPO.fullmatch(name) else None


def search(base: str | None, words: str = "", token: str | None = None) -> list[Found]:
    """The adapters that the hub lists for a base, those with the most downloads first.

    Args:
        base: the hub's id of the base; None searches LoRAs of any base, and then needs words.
        words: that their names must hold.
        token: of the visitor's account, to see private ones too.

    Raises:
        AdapterError: when there is nothing to search for, or the hub cannot be asked.
    """
    words = words.strip()
    if len(words) > MOST_WORDS or (base is None and not words):
        why = "a search takes a few words" if words else "this base is not on the hub"
        raise AdapterError(why, None, "Search for a word of the adapter's name.")
    wanted = f"base_model:adapter:{base}" if base else "lora"
    facts = ["downloads", "likes", "lastModified", "gated", "private"]
    with hub.hub_errors("The hub"):
        listed = hub.api(token).list_models(
            filter=wanted, search=words or None, sort="downloads", limit=MOST, expand=facts
        )
        return [
            Found(
                id=each.id,
                downloads=each.downloads or 0,
                likes=each.likes or 0,
                changed=each.last_modified.date().isoformat() if each.last_modified else "",
                gated=bool(each.gated),
                private=bool(each.private),
            )
            for each in listed
        ]
