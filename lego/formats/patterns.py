"""``rank_pattern`` and ``alpha_pattern``: regular expressions that anyone may have written, matched within a budget of steps."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from re import _constants as codes  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

from lego.formats.reasons import Reasons

# Steps for all patterns of a file and all its modules, a fraction of a second; ordinary files take a thousandth.
BUDGET = 5e7
# Steps that compiling takes for each character.
COMPILING = 500
MOST_LETTERS = 1000


class Pattern:
    """A ``rank_pattern`` or ``alpha_pattern``: the value of the first pattern that matches a module's name, by PEFT's own rule.

    Args:
        values: by pattern, as the config has them.
        name: of the field, for reasons.
        reasons: learn of what is no pattern, and of patterns that could take for ever.
    """

    def __init__(self, values: Any, name: str, reasons: Reasons) -> None:
        self.name, self.reasons, self.steps = name, reasons, 0.0
        # Names that no special character makes a pattern: found without trying.
        self.plain: dict[str, tuple[int, Any]] = {}
        self.others: list[tuple[int, re.Pattern[str], Callable[[int], float], Any]] = []
        if values and not isinstance(values, Mapping):
            reasons.add(f"has {name} {str(values)[:40]!r}, which is no table")
            return
        for number, (key, value) in enumerate((values or {}).items()):
            plain = re.sub(r"\\(\W)", r"\1", key)
            if re.escape(plain) == key:
                self.plain.setdefault(plain, (number, value))
            elif len(key) > MOST_LETTERS or self.steps > BUDGET:
                self.refuse(key)
            else:
                self.steps += COMPILING * len(key)
                try:
                    pattern, cost = re.compile(rf"(.*\.)?({key})$"), cache(partial(ways, parser.parse(key)))
                    self.others.append((number, pattern, cost, value))
                except (re.error, RecursionError, OverflowError) as error:
                    what = f"has a pattern in {name} that is not a regular expression: {key[:80]!r} ({error})"
                    reasons.add(what, kind=f"{name} bad")

    def get(self, module: str, default: Any) -> Any:
        """The value for a module, or the default where no pattern matches."""
        length = len(module)
        tails = [module, *(module[found.end() :] for found in re.finditer(r"\.", module))]
        first, value = min(
            (self.plain[tail] for tail in tails if tail in self.plain), default=(length + 2**31, default)
        )
        for number, pattern, cost, other in self.others:
            if number > first:
                break
            self.steps += len(tails) * cost(length)
            if self.steps > BUDGET:
                self.refuse(pattern.pattern)
                break
            if pattern.match(module):
                return other
        return value

    def refuse(self, key: str) -> None:
        """Learn of a pattern that is not tried."""
        what = f"has a pattern in {self.name} that may take for ever to match: {key[:80]!r}"
        self.reasons.add(what, kind=f"{self.name} slow")


def ways(tree: Iterable[tuple[Any, Any]], length: int) -> float:
    """In how many ways at most a parsed pattern can be laid along a text of a length: what a backtracking matcher may have to try."""
    found = 1.0
    for code, rest in tree:
        if code is codes.SUBPATTERN:
            found *= ways(rest[-1], length)
        elif code is codes.BRANCH:
            found *= alternatives(rest[1], length)
        elif code in (codes.MAX_REPEAT, codes.MIN_REPEAT, codes.POSSESSIVE_REPEAT):
            least, most, inner = rest
            turns = min(int(most), length + 1)
            found *= (turns - min(least, turns) + 1) * power(ways(inner, length), turns)
        elif code in (codes.ASSERT, codes.ASSERT_NOT):
            found *= ways(rest[1], length)
        elif code is codes.ATOMIC_GROUP:
            found *= ways(rest, length)
        elif code is codes.GROUPREF_EXISTS:
            found *= ways(rest[1], length) + ways(rest[2] or [], length)
    return found


def power(base: float, exponent: int) -> float:
    """base**exponent, infinite where a float cannot hold it."""
    return base**exponent if base <= 1 or exponent * math.log(base) < 700 else math.inf


def alternatives(branches: Iterable[Any], length: int) -> float:
    """The same for alternatives: different words of one length cannot both be there."""
    total, words = 0.0, Counter[tuple[int, ...]]()
    for branch in branches:
        if all(code is codes.LITERAL for code, _ in branch):
            words[tuple(letter for _, letter in branch)] += 1
        else:
            total += ways(branch, length)
    most: dict[int, int] = {}
    for word, count in words.items():
        most[len(word)] = max(most.get(len(word), 0), count)
    return max(1.0, total + sum(most.values()))
