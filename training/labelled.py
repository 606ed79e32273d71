"""Labelled texts for the scorer: each corpus's labels of toxicity, converted to six targets of which some may be unknown.

Each corpus has its own notion of toxicity and its own share of it, so an example keeps the name of its source; the
scorer learns one scale (Perspective's) and a slope and offset per source. Unknown targets are NaN and are left out of the loss.
Only toxicity (everywhere) and identity attack (in the tweets) are labelled by people or by Perspective; the other
classes of toxic texts are weak labels, derived from the words of the lexicon.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from interp.data.lexicon import HOSTILE_KINDS, STRONG_KINDS, lexicon, word_pattern
from training.sources import document_hash, held_out, source_rows

UNKNOWN = float("nan")
CLEAN, TOXIC = 0.2, 0.8
SHINGLE = 8

IDENTITY_WORDS = (
    "gay",
    "lesbian",
    "bisexual",
    "transgender",
    "trans",
    "queer",
    "straight",
    "black",
    "white",
    "asian",
    "african",
    "mexican",
    "latino",
    "indian",
    "chinese",
    "american",
    "muslim",
    "islamic",
    "jewish",
    "jew",
    "christian",
    "catholic",
    "hindu",
    "buddhist",
    "atheist",
    "woman",
    "women",
    "female",
    "man",
    "male",
    "feminist",
    "immigrant",
    "refugee",
    "disabled",
    "blind",
    "deaf",
    "elderly",
    "teenage",
)
IDENTITY = re.compile(r"\b(?:" + "|".join(IDENTITY_WORDS) + r")s?\b", re.IGNORECASE)
SECOND_PERSON = re.compile(r"\b(?:you|your|youre|u|ur|yourself)\b", re.IGNORECASE)
THREATENER = re.compile(
    r"\b(?:i will|i'll|ill|i'm going to|im going to|gonna|going to|you should|deserves? to|hope (?:you|he|she|they)|go)\W+(?:\w+\W+){0,3}$",
    re.IGNORECASE,
)
THREATENED = re.compile(r"^\W+(?:\w+\W+){0,2}(?:you|u|your|yourself|him|her|them)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Example:
    """A text with its toxicity target in [0, 1], a known identity-attack target or NaN, and toxic characters if marked."""

    text: str
    source: str
    toxicity: float
    identity_attack: float = UNKNOWN
    spans: tuple[int, ...] | None = None


def weak_targets(text: str, toxicity: float, identity_attack: float = UNKNOWN) -> tuple[float, ...]:
    """Targets in detoxify's order: the labelled toxicity, and five classes derived from words where they are not labelled.

    A clean text (toxicity below 0.2) has none of the classes; an undecided one (up to 0.8) leaves them unknown.
    """
    if toxicity < CLEAN:
        return (toxicity, 0.0, 0.0, 0.0, 0.0, 0.0)
    if toxicity < TOXIC:
        return (toxicity, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, identity_attack)
    strong = len(word_pattern(STRONG_KINDS).findall(text))
    severe = float(strong >= 2 and strong * 8 >= len(text.split()))
    obscene = float(word_pattern(("profanity", "sexual")).search(text) is not None)
    threat = float(any(_threatens(text, match) for match in word_pattern(("threat",)).finditer(text)))
    directed = strong > 0 and SECOND_PERSON.search(text) is not None
    insult = 1.0 if directed or word_pattern(("insult",)).search(text) else (0.0 if obscene else UNKNOWN)
    if identity_attack != identity_attack:
        slur = word_pattern(("slur",)).search(text) is not None
        identity_attack = 1.0 if slur else (UNKNOWN if IDENTITY.search(text) else 0.0)
    return (toxicity, severe, obscene, threat, insult, identity_attack)


def _threatens(text: str, match: re.Match[str]) -> bool:
    before, after = text[max(0, match.start() - 40) : match.start()], text[match.end() : match.end() + 40]
    return THREATENER.search(before) is not None or THREATENED.search(after) is not None


def _binary(row: dict[str, Any], source: dict[str, Any]) -> Example:
    return Example(row["text"], source["name"], float(row["toxic"]))


def _lines(row: dict[str, Any], source: dict[str, Any]) -> Example:
    return Example(row["text"], source["name"], float(source["toxic"]))


def _spans(row: dict[str, Any], source: dict[str, Any]) -> Example:
    spans = tuple(json.loads(row["spans"]))
    return Example(row["text"], source["name"], 1.0, spans=spans or None)


def _tweets(row: dict[str, Any], source: dict[str, Any]) -> Example:
    votes = float(row["count"])
    hate, offensive = float(row["hate_speech"]) / votes, float(row["offensive_language"]) / votes
    return Example(re.sub(r"&#?\w+;", " ", row["tweet"]), source["name"], min(1.0, hate + offensive), identity_attack=hate)


def _perspective(row: dict[str, Any], source: dict[str, Any]) -> Example:
    return Example(row["text"], source["name"], float(row["api"]))


def _graded(row: dict[str, Any], source: dict[str, Any]) -> Example:
    return Example(row["txt"], source["name"], (float(row["offensiveness_score"]) + 1) / 2)


READERS: dict[str, Callable[[dict[str, Any], dict[str, Any]], Example]] = {
    "binary": _binary,
    "lines": _lines,
    "spans": _spans,
    "tweets": _tweets,
    "perspective": _perspective,
    "graded": _graded,
}


def letters(text: str) -> list[str]:
    """The words of a text without case, digits and punctuation, by which copies in other formats are recognised."""
    return re.sub(r"[^a-z ]+", "", re.sub(r"\s+", " ", text.lower())).split()


def shingles(text: str) -> Iterator[str]:
    """Every run of eight words, or the whole text where it is shorter."""
    words = letters(text)
    for start in range(max(1, len(words) - SHINGLE + 1)):
        yield " ".join(words[start : start + SHINGLE])


def read_labelled(sources: Iterable[dict[str, Any]]) -> tuple[list[Example], list[Example], int]:
    """Examples to train on, held-out examples, and how many were left out because they share words with a held-out one.

    A text counts once, by hash. The sentence sets are cut from documents of other sets, so a training text is also left
    out when it shares eight consecutive words (or is a short text as a whole) with any held-out text.
    """
    train: list[Example] = []
    heldout: list[Example] = []
    seen: set[int] = set()
    for source in sources:
        for _, row in source_rows(source):
            example = READERS[source["reader"]](row, source)
            key = document_hash(example.text)
            if key in seen or not example.text.strip() or example.text.strip() in {"[deleted]", "[removed]"}:
                continue
            seen.add(key)
            (heldout if held_out(example.text) else train).append(example)
    known = {shingle for example in heldout for shingle in shingles(example.text)}
    disjoint = [example for example in train if not any(shingle in known for shingle in shingles(example.text))]
    return disjoint, heldout, len(train) - len(disjoint)


def neutral_windows(sources: Iterable[dict[str, Any]], rng: random.Random) -> tuple[list[Example], list[Example]]:
    """Short pieces of unlabelled prose without one listed word, half of them naming an identity: weakly labelled clean.

    They keep identity words and everyday prose from being read as toxic. Split like all texts, by document.
    """
    every_kind = word_pattern(tuple(lexicon()))
    train: list[Example] = []
    heldout: list[Example] = []
    for source in sources:
        room = {True: source["count"] // 2, False: source["count"] - source["count"] // 2}
        for _, row in source_rows(source):
            words = row["text"][:6000].split()
            for _ in range(1 + len(words) // 200):
                length = rng.randint(3, 40)
                start = rng.randrange(max(1, len(words) - length))
                text = " ".join(words[start : start + length])
                named = IDENTITY.search(text) is not None
                if room[named] > 0 and text and not every_kind.search(text):
                    room[named] -= 1
                    (heldout if held_out(row["text"]) else train).append(Example(text, source["name"], source["toxicity"]))
            if not any(room.values()):
                break
    return train, heldout


def written_sentences(rng: random.Random, count: int) -> list[Example]:
    """Plain sentences about people, written for this project, and near-empty texts: both clean."""
    people = ("friend", "neighbour", "teacher", "sister", "cousin", "colleague", "doctor", "boss", "flatmate", "uncle")
    forms = (
        "My {p} is {i}.",
        "I grew up in a {i} family.",
        "her {p} is a {i} writer from Ohio",
        "There was a {i} {p} at the meeting",
        "As a {i} person I see it differently.",
        "they met a {i} couple on holiday",
        "The {i} community opened a library.",
        "he told me that he is {i}",
        "Some of the {i} students sing in the choir.",
        "we are {i} and proud of it",
    )
    empty = ("", " ", ".", "...", "ok", "the", "and then", "\n", "12", "- -", "yes", "it is", "?", "one of the", "I have been", "to the")
    examples = []
    for number in range(count):
        text = rng.choice(empty) if number % 8 == 0 else rng.choice(forms).format(p=rng.choice(people), i=rng.choice(IDENTITY_WORDS))
        examples.append(Example(text, "written", 0.03))
    return examples


def obfuscate(text: str, rng: random.Random) -> str:
    """The text with its hostile words obfuscated as people do to pass a filter: asterisks, digits or repeated letters."""

    def change(match: re.Match[str]) -> str:
        word = match.group(0)
        if len(word) < 3:
            return word
        style = rng.randrange(4)
        at = rng.randrange(1, len(word) - 1)
        if style == 0:
            return word[:at] + "*" + word[at + 1 :]
        if style == 1:
            return word[0] + "*" * (len(word) - 2) + word[-1]
        if style == 2:
            return word.translate(str.maketrans("ieoas", "1304$"))
        return word[:at] + word[at] * rng.randint(2, 4) + word[at + 1 :]

    return word_pattern(HOSTILE_KINDS).sub(change, text)


def view(example: Example, rng: random.Random) -> tuple[str, tuple[float, ...]]:
    """One training view of an example: the text itself, or a short piece of it whose label is still known.

    Texts with marked toxic characters give pieces with and without them; other toxic texts a piece around a listed
    word; clean texts any piece. Pieces are short because the scorer is used on 20-token continuations.
    """
    text, toxicity = example.text, example.toxicity
    draw = rng.random()
    pieces = [(match.start(), match.end()) for match in re.finditer(r"\S+", text)]
    if len(pieces) > 6 and draw < (0.6 if example.spans else 0.35):
        length = rng.randint(3, 22)
        around: int | None = None
        if example.spans:
            around = rng.choice(example.spans) if draw < 0.35 else None
        elif toxicity >= CLEAN:
            hits = [match.start() for match in word_pattern(HOSTILE_KINDS).finditer(text)]
            around = rng.choice(hits) if hits and toxicity >= TOXIC else None
            if around is None:
                length = len(pieces)
        if around is None:
            first = rng.randrange(max(1, len(pieces) - length))
        else:
            word = max(index for index, (start, _) in enumerate(pieces) if start <= max(around, pieces[0][0]))
            first = max(0, word - rng.randrange(length))
        low, high = pieces[first][0], pieces[min(first + length, len(pieces)) - 1][1]
        if example.spans:
            toxicity = float(any(low <= position < high for position in example.spans))
        text = text[low:high]
    targets = weak_targets(text, toxicity, example.identity_attack)
    if rng.random() < 0.1:
        text = obfuscate(text, rng)
    return text, targets
