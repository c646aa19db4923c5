"""Portraits: exact labels, exact counterfactuals, captions that keep held-out words out."""

import dataclasses
import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from portrait_landmarks import landmarks

from pipeline import portraits
from pipeline.portraits import ATTRIBUTES, HELDOUT_PAIRS, PHRASES

PEOPLE = (0, 7, 1_234_567, 2**40)
PAIR_WORDS = {
    "hair_style=curly": r"curl",
    "hair_color=grey": r"(grey|gray|white|silver)( hair|-haired)",
    "hair_style=mohawk": r"mohawk",
    "glasses=eyeglasses": r"(with|wearing|and|,) (eye)?glasses",
    "clothes=suit": r"\bsuit\b",
    "clothes_color=yellow": r"yellow (clothes|suit)|dressed in yellow",
    "glasses=sunglasses": r"sunglasses",
    "expression=sad": r"\b(sad|unhappy|frowning)\b",
    "age=old": r"\b(old|wrinkled|wrinkles)\b",
    "lips=red": r"(lipstick|red lips)",
    "hair_style=long": r"\blong\b|long-haired",
    "facial_hair=moustache": r"m(o)?ustache",
}


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z-]+", text))


TRAIN_WORDS = {
    w for values in PHRASES.values() for train, _ in values.values() for phrase in train for w in words(phrase)
}
HELDOUT_WORDS = {
    w for values in PHRASES.values() for _, heldout in values.values() for phrase in heldout for w in words(phrase)
} - TRAIN_WORDS


def with_values(row_id: int, *wanted: str) -> portraits.Portrait:
    return portraits.counterfactual(portraits.sample(row_id), dict(item.split("=") for item in wanted))  # type: ignore[misc]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**40))
def test_a_row_id_alone_decides_the_portrait_and_its_bytes(row_id):
    first, second = portraits.sample(row_id), portraits.sample(row_id)
    assert first == second
    assert portraits.svg(first) == portraits.svg(second)
    assert np.array_equal(portraits.render(first, 32), portraits.render(second, 32))


def test_neighbouring_and_distant_rows_differ():
    rows = [*range(200), 2**32, 2**33, 2**40]
    assert len({portraits.sample(row) for row in rows}) == len(rows)


@pytest.mark.parametrize("size", [8, 33, 64, 128, 1024])
def test_any_size_gives_rgb_bytes_of_that_size(size):
    picture = portraits.render(portraits.sample(3), size)
    assert picture.shape == (size, size, 3)
    assert picture.dtype == np.uint8
    assert picture.std() > 10


@pytest.mark.parametrize("size", [0, 7, 1025])
def test_a_size_out_of_range_is_refused(size):
    with pytest.raises(ValueError, match=r"8\.\.1024"):
        portraits.render(portraits.sample(3), size)


def test_there_are_many_attributes_and_labels_use_only_their_values():
    assert len(ATTRIBUTES) >= 16
    assert sum(map(len, ATTRIBUTES.values())) >= 40
    assert {field.name for field in dataclasses.fields(portraits.Traits)} == set(ATTRIBUTES) == set(PHRASES)
    for row in range(300):
        labels = portraits.attributes(portraits.sample(row))
        assert list(labels) == list(ATTRIBUTES)
        assert all(value in ATTRIBUTES[name] for name, value in labels.items())


def test_values_have_their_frequencies():
    labels = [portraits.attributes(portraits.sample(row)) for row in range(3_000)]
    for name, values in ATTRIBUTES.items():
        for value in values:
            assert np.mean([label[name] == value for label in labels]) >= 0.03, (name, value)
    for name, value in (("hair_style", "bald"), ("hair_style", "mohawk"), ("glasses", "sunglasses")):
        assert np.mean([label[name] == value for label in labels]) >= 0.1


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_a_counterfactual_changes_one_attribute_and_can_be_undone(attribute):
    for row in PEOPLE:
        person = portraits.sample(row)
        before = portraits.to_dict(person)
        for value in ATTRIBUTES[attribute]:
            changed = portraits.counterfactual(person, {attribute: value})
            assert portraits.attributes(changed) == portraits.attributes(person) | {attribute: value}
            assert portraits.to_dict(changed) == before | {f"trait.{attribute}": value}
            assert portraits.counterfactual(changed, {attribute: value}) == changed
            back = portraits.counterfactual(changed, {attribute: portraits.attributes(person)[attribute]})
            assert back == person


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_every_visible_change_is_in_the_pixels_and_nearly_all_are_plain_at_64(attribute):
    changes = []
    for row in range(20, 40):
        person = portraits.sample(row)
        if portraits.visible(person)[attribute]:
            edits = [portraits.counterfactual(person, {attribute: value}) for value in ATTRIBUTES[attribute]]
            first, *others = (portraits.render(edit, 64).astype(int) for edit in edits)
            changes += [np.abs(first - other).max(axis=2) for other in others]
    assert all(change.any() for change in changes)
    assert np.mean([(change > 16).sum() >= 12 for change in changes]) >= 0.85


@pytest.mark.parametrize(("attribute", "hidden_by"), [("eyes", "glasses=sunglasses"), ("bangs", "hair_style=bald")])
def test_a_hidden_change_leaves_every_pixel(attribute, hidden_by):
    for row in range(4):
        person = with_values(row, hidden_by)
        assert not portraits.visible(person)[attribute]
        first, second = (
            portraits.render(portraits.counterfactual(person, {attribute: value}), 64)
            for value in ATTRIBUTES[attribute]
        )
        assert np.array_equal(first, second)


def test_hidden_attributes_keep_their_values():
    person = with_values(5, "glasses=none", "eyes=open", "hair_style=short", "hair_color=red")
    shades = portraits.counterfactual(person, {"glasses": "sunglasses"})
    bald = portraits.counterfactual(person, {"hair_style": "bald"})
    assert all(portraits.visible(person).values())
    assert not portraits.visible(shades)["eyes"]
    assert not portraits.visible(shades)["eye_size"]
    assert not portraits.visible(bald)["hair_color"]
    assert not portraits.visible(bald)["bangs"]
    assert portraits.attributes(bald)["hair_color"] == "red"


@pytest.mark.parametrize(
    ("attribute", "value", "nearest"),
    [("hair_colour", "red", "hair_color"), ("hair_color", "blonde", "blond"), ("glasses", "sunglases", "sunglasses")],
)
def test_an_unknown_name_is_refused_with_the_nearest_one(attribute, value, nearest):
    with pytest.raises(ValueError, match=f"did you mean '{nearest}'"):
        portraits.counterfactual(portraits.sample(0), {attribute: value})


def test_another_nuisance_keeps_the_identity():
    person = portraits.sample(11)
    others = [portraits.with_nuisance(person, row) for row in range(30)]
    assert all(other.identity == person.identity for other in others)
    assert len({other.traits for other in others}) == len({other.look for other in others}) == 30
    assert others[3].traits == portraits.sample(3).traits


def test_a_portrait_survives_json():
    for row in PEOPLE:
        person = portraits.sample(row)
        flat = portraits.to_dict(person)
        assert {type(item) for item in flat.values()} == {float, str}
        assert portraits.from_dict(json.loads(json.dumps(flat))) == person


def test_a_stored_value_that_is_unknown_is_refused():
    with pytest.raises(ValueError, match="did you mean 'sunglasses'"):
        portraits.from_dict(portraits.to_dict(portraits.sample(0)) | {"trait.glasses": "sunglass"})


def test_phrases_cover_every_value_and_heldout_words_are_new():
    for name, values in ATTRIBUTES.items():
        assert tuple(PHRASES[name]) == values
    heldout = [phrase for values in PHRASES.values() for _, held in values.values() for phrase in held]
    assert sum(bool(held) for values in PHRASES.values() for _, held in values.values()) >= 15
    assert all(words(phrase) & HELDOUT_WORDS for phrase in heldout)
    assert all(item.split("=")[1] in ATTRIBUTES[item.split("=")[0]] for pair in HELDOUT_PAIRS for item in pair)


def test_train_captions_are_plain_ascii_and_never_use_heldout_words():
    rng = np.random.default_rng(0)
    for row in range(4_000):
        text = portraits.caption(portraits.sample(row), rng, "train")
        assert text
        assert text.isascii()
        assert text == " ".join(text.split())
        assert not words(text) & HELDOUT_WORDS, text


@pytest.mark.parametrize("pair", HELDOUT_PAIRS)
def test_train_captions_never_name_a_heldout_pair_and_heldout_ones_do(pair):
    rng = np.random.default_rng(1)
    people = [with_values(row, "glasses=none", "hair_style=short", *pair) for row in range(300)]
    patterns = [PAIR_WORDS[item] for item in pair]
    named = [0, 0]
    for person in people:
        text = portraits.caption(person, rng, "train")
        found = [bool(re.search(pattern, text)) for pattern in patterns]
        named = [count + hit for count, hit in zip(named, found)]
        assert not all(found)
    assert min(named) > 0
    held = [_phrases_of(item) for item in pair]
    texts = [portraits.caption(person, rng, "heldout") for person in people]
    assert sum(all(any(word in text for word in core) for core in held) for text in texts) > 100


def _phrases_of(item: str) -> list[str]:
    name, value = item.split("=")
    train, heldout = PHRASES[name][value]
    return [phrase.split(" ", 1)[-1].split(" hair")[0].split(" clothes")[0] for phrase in heldout or train]


def test_heldout_captions_use_a_heldout_word_wherever_one_exists():
    rng = np.random.default_rng(2)
    texts = [portraits.caption(portraits.sample(row), rng, "heldout") for row in range(1_000)]
    assert np.mean([bool(words(text) & HELDOUT_WORDS) for text in texts]) > 0.8
    replaced = {p for values in PHRASES.values() for train, held in values.values() if held for p in train}
    assert not any(
        re.search(rf"\b{re.escape(phrase)}\b", text) for text in texts for phrase in replaced if " " in phrase
    )


def test_captions_name_from_none_to_eight_attributes_and_small_ones_most_often():
    rng = np.random.default_rng(3)
    texts = [portraits.caption(portraits.sample(row), rng, "train") for row in range(6_000)]
    assert {"face", "a face", "portrait", "a portrait"} <= set(texts)
    assert max(len(text.split()) for text in texts) > 25
    brows, clothes = (sum(word in text for text in texts) for word in ("brows", "clothes"))
    assert brows > 1.5 * clothes


@pytest.mark.parametrize(
    ("values", "prompt"),
    [
        (("hair_style=short", "hair_color=red"), "face with red hair"),
        (("expression=smile",), "happy face"),
        (("glasses=eyeglasses",), "face with eyeglasses"),
        (("clothes=suit", "clothes_color=blue"), "face in a blue suit"),
        (("skin=pale",), "pale face"),
        (("facial_hair=beard",), "face with a beard"),
    ],
)
def test_prompts_of_users_are_in_the_training_grammar(values, prompt):
    rng = np.random.default_rng(4)
    person = with_values(1, *values)
    assert any(portraits.caption(person, rng, "train").endswith(prompt) for _ in range(40_000))


def test_captions_are_repeatable_and_an_unknown_split_is_refused():
    person = portraits.sample(8)
    first, second = (portraits.caption(person, np.random.default_rng(5), "train") for _ in range(2))
    assert first == second
    with pytest.raises(ValueError, match="train"):
        portraits.caption(person, np.random.default_rng(5), "test")


def test_a_caption_among_some_attributes_names_no_other() -> None:
    rng = np.random.default_rng(0)
    captions = [portraits.caption(portraits.sample(row), rng, "train", among=["lips"]) for row in range(200)]
    about_lips = [text for text in captions if "lip" in text]
    assert 100 < len(about_lips) < 200
    others = {
        word
        for name in ("hair_color", "glasses", "skin", "background")
        for v in PHRASES[name].values()
        for word in v[0]
    }
    assert not any(phrase.removeprefix("with ") in text for text in captions for phrase in others)
    assert all(portraits.caption(portraits.sample(row), rng, "train", among=[]) for row in range(20))


def changed(first: portraits.Portrait, second: portraits.Portrait, size: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y, in the unit square, of the pixels in which two portraits differ plainly."""
    difference = np.abs(portraits.render(first, size).astype(int) - portraits.render(second, size)).max(2)
    y, x = np.nonzero(difference > 40)
    return (x + 0.5) / size, (y + 0.5) / size


@pytest.mark.parametrize("row_id", [3, 17, 40, 58_011, 58_023])
def test_landmarks_are_where_eyes_and_mouth_are_drawn(row_id: int) -> None:
    person = portraits.counterfactual(portraits.sample(row_id), {"glasses": "none"})
    person = portraits.counterfactual(person, {"bangs": "no", "expression": "neutral"})
    eye_left, eye_right, left, right = landmarks(person)
    lids = [portraits.counterfactual(person, {"eyes": value}) for value in ("open", "closed")]
    x, y = changed(*lids, 512)
    middle = (eye_left[0] + eye_right[0]) / 2
    for eye, side in ((eye_left, x < middle), (eye_right, x >= middle)):
        assert abs(np.median(x[side]) - eye[0]) < 0.02 and abs(np.median(y[side]) - eye[1]) < 0.03
    lips = [portraits.counterfactual(person, {"lips": value}) for value in ("natural", "red")]
    x, _ = changed(*(portraits.counterfactual(one, {"facial_hair": "none"}) for one in lips), 512)
    assert abs(x.min() - left[0]) < 0.03 and abs(x.max() - right[0]) < 0.03
    assert left[1] > max(eye_left[1], eye_right[1])


@given(st.integers(0, 2**31), st.sampled_from(sorted(set(ATTRIBUTES) - {"pose", "expression", "face_shape"})))
@settings(max_examples=20, deadline=None)
def test_landmarks_belong_to_the_head_alone(row_id: int, attribute: str) -> None:
    person = portraits.sample(row_id)
    found = landmarks(person)
    assert found.shape == (4, 2) and (found > 0.1).all() and (found < 0.9).all()
    for value in ATTRIBUTES[attribute]:
        assert np.array_equal(landmarks(portraits.counterfactual(person, {attribute: value})), found)


@pytest.mark.parametrize("row_id", PEOPLE)
def test_an_inked_portrait_is_another_image_with_the_same_attributes(row_id):
    painted = portraits.sample(row_id)
    inked = portraits.with_style(painted, "inked")
    assert portraits.attributes(inked) == portraits.attributes(painted)
    assert portraits.with_style(inked, "painted") == painted
    assert portraits.with_nuisance(inked, 5).style == "inked"
    pictures = [portraits.render(person, 64) for person in (painted, inked)]
    assert np.abs(pictures[0].astype(int) - pictures[1]).mean() > 10
    assert np.array_equal(pictures[1], portraits.render(portraits.with_style(portraits.sample(row_id), "inked"), 64))


def test_an_inked_counterfactual_has_the_same_paper_and_changes_where_the_painted_one_does():
    person = with_values(3, "lips=natural")
    paper = portraits.with_style(person, "inked"), portraits.with_style(with_values(3, "lips=red"), "inked")
    one, other = (portraits.render(side, 128).astype(int) for side in paper)
    assert (one != other).any() and (one[:40] == other[:40]).all()  # the lips alone


def test_a_drawing_style_survives_json_and_painted_portraits_have_none():
    painted = portraits.sample(5)
    inked = portraits.with_style(painted, "inked")
    assert portraits.from_dict(json.loads(json.dumps(portraits.to_dict(inked)))) == inked
    assert "style" not in portraits.to_dict(painted)
    with pytest.raises(ValueError, match=r"unknown style 'ink'.*did you mean 'inked'"):
        portraits.with_style(painted, "ink")
    with pytest.raises(ValueError, match="unknown style"):
        portraits.from_dict({**portraits.to_dict(painted), "style": "etched"})
