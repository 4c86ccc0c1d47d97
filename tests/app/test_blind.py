"""Blind judging: every pair once, sides at random, nothing on the page that tells before the vote, votes as soon as both began."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import combinations

import pytest

from components.compare import blind, comparison, gallery
from components.compare.comparison import Comparison
from components.compare.gallery import Gallery
from components.compare.votes import CHOICES
from components.session.state import Column
from lego import AdapterError
from mole.pool import Weighting

NAMES = ["Base", "LoRA-LEGO", "Exact sum"]


def columns() -> list[Column]:
    return [Column(f"lora:{name}", name, Weighting(((name, 1.0),)), (i,)) for i, name in enumerate(NAMES)]


def written(*texts: str) -> Comparison:
    found = comparison.begin("base", columns(), ["Say hi"], {"seed": 7})
    return replace(found, texts=tuple((text,) for text in texts))


def drawn(*shots: str) -> Gallery:
    found = gallery.begin("base", columns(), ["a fox"], (4,), {})
    return replace(found, shots=tuple(((shot,),) for shot in shots))


def test_every_pair_is_judged_once_and_sides_are_drawn() -> None:
    found = blind.ballot(4, 3, 2, seed=1)
    told = Counter((frozenset((p.left, p.right)), p.prompt, p.seed) for p in found.pairs)
    assert set(told.values()) == {1}
    assert len(told) == len(list(combinations(range(4), 2))) * 3 * 2
    many = blind.ballot(2, 16, 16, seed=2).pairs
    assert 0.35 < sum(pair.left == 0 for pair in many) / len(many) < 0.65
    assert blind.ballot(4, 3, 2, seed=1) == found != blind.ballot(4, 3, 2, seed=3)
    assert blind.ballot(3, 2, 0) != blind.ballot(3, 2, 0)  # nobody knows the seed


def test_one_column_is_no_pair() -> None:
    with pytest.raises(AdapterError, match="makes no pair"):
        blind.ballot(1, 3, 1)


@pytest.mark.parametrize("found", [written("one", "two", "three"), drawn("/a/1.png", "/a/2.png", "/a/3.png")])
def test_nothing_tells_before_the_vote(found: Comparison | Gallery) -> None:
    given = blind.ballot(3, 1, 1, seed=5)
    pair = given.pair
    assert pair
    hidden = blind.draw(given, found)
    mirrored = blind.draw(replace(given, pairs=(replace(pair, left=pair.right, right=pair.left),)), found)
    mine, theirs = (blind.content(found, column, pair) for column in (pair.left, pair.right))
    # Only what is judged differs when the two change sides, so nothing else can tell them apart.
    swapped = mirrored.replace(mine, "\0").replace(theirs, mine).replace("\0", theirs)
    assert swapped.replace("Pair 1 of 1", "Pair 1 of 3") == hidden
    assert not any(name in hidden for name in NAMES)
    seen = blind.draw(replace(given, choice="left"), found)
    assert seen.index(f"Left: {NAMES[pair.left]} ✓") < seen.index(f"Right: {NAMES[pair.right]}")


def test_a_vote_counts_once_and_only_when_both_have_begun() -> None:
    given = blind.ballot(3, 1, 1, seed=5)
    pair = given.pair
    assert pair
    texts = ["one", "two", "three"]
    half = list(texts)
    half[pair.right] = ""
    assert blind.vote(given, written(*half), (), "tie") == (given, ())
    voted, cast = blind.vote(given, written(*texts), (), "right")
    assert (cast[0].left, cast[0].right) == (NAMES[pair.left], NAMES[pair.right])
    assert (cast[0].winner, cast[0].seed, cast[0].prompt) == (NAMES[pair.right], 7, "Say hi")
    assert blind.vote(voted, written(*texts), cast, "left") == (voted, cast)
    assert blind.following(given) == given
    after = blind.following(voted)
    assert after
    assert (after.at, after.choice) == (1, None)


def test_an_empty_answer_can_be_judged_once_it_has_ended() -> None:
    given = blind.ballot(3, 1, 1, seed=5)
    silent = written("", "", "")
    assert not blind.begun(given, silent)
    assert blind.begun(given, replace(silent, ended=((True,),) * 3))


def test_buttons_follow_the_ballot() -> None:
    given, found = blind.ballot(3, 1, 1, seed=5), written("one", "two", "three")

    def pressable(ballot: blind.Ballot) -> list[bool]:
        return [button.interactive for button in blind.show(ballot, found)[2:]]

    assert pressable(given) == [True] * len(CHOICES) + [False]
    assert pressable(replace(given, choice="tie")) == [False] * len(CHOICES) + [True]
    assert pressable(replace(given, at=2, choice="tie")) == [False] * (len(CHOICES) + 1)
    assert pressable(replace(given, at=3)) == [False] * (len(CHOICES) + 1)
