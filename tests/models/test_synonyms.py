"""Replacement of words that CLIP does not know, and the making of the table of synonyms."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import edited_world
import pytest
import tiny_project
import torch
import yaml

from deltaspace.prompts import words_that_fit
from deltaspace.studio import Studio
from pipeline.models import clip as clips
from pipeline.models import synonyms
from pipeline.models.clip import Clip
from pipeline.models.synonyms import END, START, SynonymTable
from pipeline.networks import Networks
from pipeline.runtime import files
from pipeline.runtime.errors import InputError
from pipeline.storage import domains
from pretrain import build_synonyms

project = edited_world.project  # a fixture
ROOT = Path(__file__).parents[2]
TAUGHT = frozenset("a face with and blond light dark hair skin smiling old glasses".split())
FOLLOW = {
    **{START: "a smiling old face", "a": "smiling", "with": "glasses"},
    **{"blond": "hair", "dark": "hair skin", "light": "skin", "smiling": "face", "old": "face"},
    **dict.fromkeys(("face", "hair", "skin", "glasses"), END),
}
SIDE_BY_SIDE = frozenset((first, second) for first, seconds in FOLLOW.items() for second in seconds.split())
NEAR = {
    "fair": {"light": 60, "blond": 50, "dark": 5},
    "merry": {"smiling": 70},
    "specs": {"glasses": 90},
    "ancient": {"old": 80, "dark": 10},
}


@pytest.fixture
def table() -> SynonymTable:
    return SynonymTable(NEAR, TAUGHT, SIDE_BY_SIDE)


def test_known_words_are_kept(table: SynonymTable) -> None:
    for text in ("face with blond hair", "A  Face,\twith HAIR!", "", "123 !?", "old"):
        assert table.substitute(text) == (text, {})


def test_an_unknown_word_is_replaced_by_the_nearest_known_one(table: SynonymTable) -> None:
    assert table.substitute("Merry face with specs") == (
        "smiling face with glasses",
        {"merry": 70, "specs": 90},
    )


def test_candidates_that_captions_have_next_to_the_neighbours_are_preferred(table: SynonymTable) -> None:
    assert table.substitute("face with fair hair") == ("face with blond hair", {"fair": 50})
    assert table.substitute("face with fair skin") == ("face with light skin", {"fair": 60})


def test_a_candidate_must_occur_before_the_following_word_in_captions(table: SynonymTable) -> None:
    assert table.substitute("fair face") == ("fair face", {})
    assert table.substitute("face with merry hair") == ("face with merry hair", {})
    assert table.substitute("face, merry") == ("face, merry", {})  # no caption ends so


def test_next_to_another_unknown_word_the_nearest_candidate_is_used(table: SynonymTable) -> None:
    assert table.substitute("ancient wizard") == ("old wizard", {"ancient": 80})
    assert table.substitute("merry ancient face")[0] == "smiling old face"


def test_a_word_without_a_near_one_and_its_punctuation_are_kept(table: SynonymTable) -> None:
    assert table.substitute("give him, please: SPECS (two)!")[0] == "give him, please: glasses (two)!"
    assert table.substitute("赤い 👋 specs")[0] == "赤い 👋 glasses"


@pytest.mark.parametrize("text", ["the specs' face", "specs’s face", "it'specs face"])
def test_words_next_to_an_apostrophe_are_kept(table: SynonymTable, text: str) -> None:
    assert table.substitute(text) == (text, {})


def test_a_known_word_in_the_table_is_kept(table: SynonymTable) -> None:
    assert SynonymTable(NEAR, TAUGHT | {"specs"}, SIDE_BY_SIDE).substitute("face with specs") == ("face with specs", {})


def test_a_table_is_parsed_from_its_own_json_with_the_licence(table: SynonymTable) -> None:
    content = synonyms.serialise(table, 'as "they" say\n')
    assert synonyms.parse(content, TAUGHT) == table
    assert json.loads(content)["licence"] == 'as "they" say\n'


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"near": {}}', b'{"near": {}, "follow": 3}', b"\x00"])
def test_other_content_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError):
        synonyms.parse(content, TAUGHT)


def test_a_missing_changed_or_broken_file_is_refused_in_one_line(project: Path, tmp_path: Path) -> None:
    mine = with_words(tiny_project.copy(project, tmp_path / "mine"), {"crimson": {"red": 90}}, {})
    path = mine / "domains/tiny_words.json"

    def refusal() -> str:
        with pytest.raises(InputError) as error:
            _ = Networks(domains.load("tiny", mine), mine).clip
        return str(error.value)

    for content, words in (("", "is not the one that the domain's file names"), (None, "is missing")):
        path.unlink() if content is None else path.write_text(content)
        assert words in refusal()
    path.write_text("{")
    name_table(mine, f"words: {{file: {path.name}, sha256: {files.digest(path)}}}")
    assert "is no table of synonyms" in refusal() and "\n" not in refusal()


# ---------------------------------------------------------------- at work


def test_clip_embeds_the_replaced_text_and_without_synonyms_the_text_itself() -> None:
    torch.manual_seed(0)
    known = frozenset(tiny_project.VOCABULARY)
    clip = Clip(
        tiny_project.CLIP,
        vocabulary=known,
        synonyms=SynonymTable({"crimson": {"red": 90}}, known, frozenset({("red", "hair")})),
    )
    clip = clip.eval().requires_grad_(False)
    said, meant, templates = "face with crimson hair", "face with red hair", ("{}", "a {}")
    assert torch.equal(clip.text_feature(said, templates), clip.text_feature(meant, templates))
    assert not clip.text_delta(said, meant, templates).any()
    literal = clip.without_synonyms()
    assert not torch.allclose(literal.text_feature(said, templates), literal.text_feature(meant, templates))
    assert torch.equal(literal.text_feature(meant, templates), clip.text_feature(meant, templates))
    assert clip.synonyms is not None and literal.synonyms is None


def name_table(project: Path, line: str) -> None:
    """Put a line, as `deltaspace words` prints it, into the domain's file in place of what it says."""
    path = project / "domains/tiny.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **yaml.safe_load(line)}))


def with_words(project: Path, near: dict[str, dict[str, int]], follow: dict[str, list[str]]) -> Path:
    """The project, its domain with a table of words."""
    pairs = frozenset((first, second) for first, seconds in follow.items() for second in seconds)
    path = project / "domains/tiny_words.json"
    path.write_bytes(synonyms.serialise(SynonymTable(near, frozenset(), pairs), "none"))
    name_table(project, f"words: {{file: {path.name}, sha256: {files.digest(path)}}}")
    return project


def test_an_edit_uses_the_replaced_text_and_reports_it(project: Path, tmp_path: Path) -> None:
    mine = with_words(
        tiny_project.copy(project, tmp_path / "mine"),
        {"crimson": {"red": 90}, "ruby": {"red": 50}, "lol": {"eyeglasses": 99}},
        {"red": ["hair"], "eyeglasses": [END]},
    )
    studio = Studio.load("tiny", "cpu", root=mine)
    prompt = studio.prompt("face with crimson hair")
    (warning,) = prompt.warnings
    assert "never taught 'crimson'" in warning and "it reads 'face with red hair'" in warning
    both = studio.prompt("zebra with crimson hair").warnings
    assert len(both) == 2 and "'zebra'" in both[1] and "crimson" not in both[1]
    assert (
        "may not be" not in warning
        and "may not be what 'ruby' says" in studio.prompt("face with ruby hair").warnings[0]
    )
    fitting = words_that_fit("face with " + "lol " * 60, studio.networks.clip, ("a portrait of {}",))
    read = studio.networks.clip.substitute(fitting)[0]
    assert "eyeglasses" in read and len(studio.networks.clip.tokenizer.encode(f"a portrait of {read}")) <= 38
    person = studio.sample(1)
    one, other = (studio.edit(person, text).pixels for text in ("face with crimson hair", "face with red hair"))
    assert torch.equal(one, other)


def test_a_table_with_another_digest_is_refused(project: Path, tmp_path: Path) -> None:
    mine = with_words(tiny_project.copy(project, tmp_path / "mine"), {}, {})
    (mine / "domains/tiny_words.json").write_text("{}")
    with pytest.raises(InputError, match="is not the one that the domain's file names"):
        _ = Networks(domains.load("tiny", mine), mine).clip


@pytest.mark.parametrize("named", ["../x.json", "/etc/passwd", "", "a/b.json"])
def test_the_tables_file_must_lie_next_to_the_domains(named: str) -> None:
    with pytest.raises(ValueError, match="is no name of a file in domains/"):
        domains.Words(named, "0" * 64)


def test_the_shipped_table_has_no_known_words_and_replaces_common_requests() -> None:
    clip = Networks(domains.load("portraits", ROOT), ROOT).clip
    table, taught = clip.synonyms, clip.vocabulary
    assert table is not None and taught is not None
    assert not taught & set(table.near)
    assert {other for near in table.near.values() for other in near} <= taught
    for said, read in {  # none of them held out
        "a fat man with a goatee": "a chubby man with a beard",
        "give her enormous eyes": "give her large eyes",
        "a suntanned lifeguard": "a tanned lifeguard",
        "make him look angry": "make him look angry",
    }.items():
        assert clip.substitute(said)[0] == read
    for said in (
        "the woman's hair isn't red",
        "I'm bald",
        "St. John's hair",
        "they're red-haired",
        "glasses off",
        "hair up",
        "with his hair down",
        "so happy",
        "x-ray",
    ):
        assert clip.substitute(said)[0] == said
    assert min(map(len, table.near)) >= build_synonyms.SHORTEST
    assert min(value for near in table.near.values() for value in near.values()) >= build_synonyms.LEAST
    assert "Princeton University" in json.loads((ROOT / "domains/portraits_words.json").read_text())["licence"]


# ---------------------------------------------------------------- made from dictionaries


def synset(
    place: int, kind: str, names: list[str], gloss: str, pointers: tuple[tuple[str, int, str], ...] = (), topic: int = 0
) -> str:
    """A line of WordNet's data files."""
    told = " ".join(f"{name} 0" for name in names)
    led = " ".join(f"{sign} {there:08d} {of} 0000" for sign, there, of in pointers)
    return f"{place:08d} {topic:02d} {kind} {len(names):02x} {told} {len(pointers):03d} {led} | {gloss}  \n"


def index(name: str, kind: str, *places: int) -> str:
    return f"{name} {kind} {len(places)} 0 {len(places)} 0 {' '.join(f'{place:08d}' for place in places)}  \n"


@pytest.fixture
def dictionaries(tmp_path: Path) -> tuple[Path, Path]:
    """A WordNet of a few words in the published format, and a thesaurus."""
    folder = tmp_path / "wordnet"
    folder.mkdir()
    notice = "  1 Copyright of somebody.  \n  2 All rights.  \n"
    files_of = {
        "noun": (
            [
                synset(10, "n", ["glasses", "specs"], "worn before the eyes"),
                synset(11, "n", ["goggles"], 'tight ones; "she wore a smile"', (("@", 10, "n"),)),
                synset(12, "n", ["pirate"], "somebody old who robs", topic=18),
                synset(13, "n", ["jumper"], "who jumps", topic=18),
                synset(14, "n", ["jumper", "dark"], "a thing"),
                synset(15, "n", ["jumper"], "a wire"),
            ],
            [
                index("specs", "n", 10),
                index("goggles", "n", 11),
                index("pirate", "n", 12),
                index("jumper", "n", 13, 14, 15),
            ],
        ),
        "adj": (
            [
                synset(20, "a", ["blond", "fair(a)"], "of hair, light"),
                synset(21, "s", ["flaxen"], "as flax", (("&", 20, "a"),)),
                synset(22, "a", ["fair"], "just"),
            ],
            [index("flaxen", "a", 21), index("fair", "a", 22, 20)],
        ),
        "verb": ([], []),
        "adv": ([], []),
    }
    for name, (data, words_of_it) in files_of.items():
        (folder / f"data.{name}").write_text(notice + "".join(data))
        (folder / f"index.{name}").write_text(notice + "".join(words_of_it))
    moby = tmp_path / "moby.txt"
    moby.write_text("merry,smiling,gay\ngay,smiling,merry,happy\nold,aged\n")
    return folder, moby


def test_words_of_a_sense_come_nearest_then_kinds_and_definitions(dictionaries: tuple[Path, Path]) -> None:
    net = build_synonyms.wordnet(dictionaries[0])
    assert build_synonyms.related(net, "specs")["glasses"] == build_synonyms.SAME
    goggles = build_synonyms.related(net, "goggles")
    assert goggles["glasses"] == build_synonyms.POINTERS["@"] > goggles["tight"] == build_synonyms.DEFINED
    assert "smile" not in goggles  # an example is no definition
    assert build_synonyms.related(net, "flaxen")["blond"] == build_synonyms.POINTERS["&"]
    fair = build_synonyms.related(net, "fair")
    assert fair["just"] == build_synonyms.DEFINED and fair["blond"] == build_synonyms.SAME / (
        1 + build_synonyms.LATER
    )  # its second sense
    assert net.licence == "Copyright of somebody. All rights."


def test_words_of_one_thesaurus_entry_are_near(dictionaries: tuple[Path, Path]) -> None:
    near = build_synonyms.listed(build_synonyms.thesaurus(dictionaries[1]), {"smiling", "old"})
    assert near["merry"]["smiling"] > near["happy"]["smiling"] > 0
    assert "old" not in near["merry"] and near["aged"]["old"] > 0


def test_the_table_has_words_that_describe_appearance(dictionaries: tuple[Path, Path]) -> None:
    net, entries = build_synonyms.wordnet(dictionaries[0]), build_synonyms.thesaurus(dictionaries[1])
    asked = [
        "specs",
        "goggles",
        "pirate",
        "jumper",
        "flaxen",
        "merry",
        "aged",
        "glasses",
        "give",
        "zzz",
        "blonds",
        "Re",
        "so",
    ]
    table = build_synonyms.table(net, entries, asked, TAUGHT, ["face"])
    assert set(table) == {"specs", "goggles", "flaxen", "merry", "aged", "jumper", "blonds"}
    assert list(table["specs"]) == ["glasses"] and table["blonds"]["blond"] == round(200 * build_synonyms.INFLECTED)
    assert all(value >= build_synonyms.LEAST for near in table.values() for value in near.values())


def test_stems_are_words_without_their_ending() -> None:
    assert {"smile", "smil"} <= set(build_synonyms.stems("smiling"))
    assert (
        "curl" in build_synonyms.stems("curls")
        and "fat" in build_synonyms.stems("fatter")
        and "curly" in build_synonyms.stems("curlier")
    )
    assert build_synonyms.stems("as") == []


def test_pairs_are_neighbours_in_a_caption() -> None:
    assert build_synonyms.pairs(["A red face", "old"]) == {
        (START, "a"),
        ("a", "red"),
        ("red", "face"),
        ("face", END),
        (START, "old"),
        ("old", END),
    }


def test_the_command_writes_the_table_and_prints_the_domains_entry(
    dictionaries: tuple[Path, Path],
    project: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from deltaspace.cli import app

    mine = tiny_project.copy(project, tmp_path / "mine")
    monkeypatch.chdir(mine)
    monkeypatch.setattr(build_synonyms, "frequent_words", lambda: {"face", "crimson"})
    monkeypatch.setattr(build_synonyms, "captions", lambda: iter(["face with red hair"]))
    options = ["--wordnet", str(dictionaries[0]), "--moby", str(dictionaries[1]), "--domain", "tiny"]
    assert app.run(["words", *options]) == 0
    told = capsys.readouterr().out.splitlines()[-1]
    name_table(mine, told)
    clip = Networks(domains.load("tiny", mine), mine).clip
    assert clip.synonyms is not None and ("red", "hair") in clip.synonyms.pairs
    assert clip.vocabulary and not clip.vocabulary & set(clip.synonyms.near)
    (mine / "domains/tiny_words.json").write_text("broken")  # it is made anew whatever lies there
    assert app.run(["words", *options]) == 0 and capsys.readouterr().out.splitlines()[-1] == told
    photographs = dataclasses.replace(domains.load("tiny", mine), renderer=None)
    with pytest.raises(InputError, match="has no captions to learn from"):
        build_synonyms.make(photographs, mine, *dictionaries)
    assert app.run(["words", "--wordnet", str(tmp_path), "--moby", str(dictionaries[1]), "--domain", "tiny"]) == 2
    assert re.search(r"data\.noun cannot be read: No such file", capsys.readouterr().err)


def test_whole_words_of_the_tokenizer_are_letters_only() -> None:
    found = build_synonyms.frequent_words()
    assert {"smiles", "auburn", "wearing"} <= found and all(word.isalpha() for word in found)
    assert {word for word in found if clips.words(word) == [word]} == found and len(found) > 20_000
