"""Faces end up where FFHQ has them: eyes and mouth at the same places, however the photograph was taken."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from portrait_landmarks import landmarks

from pipeline import portraits
from pipeline.runtime.errors import InputError
from pipeline.storage import face_alignment

SIZE, DRAWN, CANVAS = 128, 256, 640  # pixels of what is cut out, of a portrait, of the photograph around it
DOT = np.array([255, 0, 255])  # a colour no portrait has
PLACES = st.tuples(
    st.integers(0, 40), st.floats(-180, 180), st.floats(0.5, 1.4), st.floats(-60, 60), st.floats(-60, 60)
)


@cache
def portrait(row: int) -> np.ndarray:
    """uint8 [DRAWN,DRAWN,3] with a dot on each landmark."""
    person = portraits.sample(row)
    pixels = portraits.render(person, DRAWN)
    y, x = np.mgrid[:DRAWN, :DRAWN]
    for at_x, at_y in landmarks(person) * DRAWN - 0.5:
        pixels[(x - at_x) ** 2 + (y - at_y) ** 2 <= 16] = DOT
    return pixels


def photograph(row: int, turn: float, zoom: float, x: float, y: float) -> tuple[Image.Image, np.ndarray]:
    """A portrait turned (degrees), scaled and shifted (pixels) on a canvas of grey noise; and its landmarks [4,2]."""
    cos, sin = zoom * math.cos(math.radians(turn)), zoom * math.sin(math.radians(turn))
    matrix = np.array([[cos, -sin], [sin, cos]])
    middle, where = np.full(2, DRAWN / 2), np.array([CANVAS / 2 + x, CANVAS / 2 + y])
    inverse = np.linalg.inv(matrix)
    offset = middle - inverse @ where
    whole = Image.fromarray(portrait(row)).convert("RGBA")
    data = (*inverse[0], offset[0], *inverse[1], offset[1])
    put = whole.transform((CANVAS, CANVAS), Image.Transform.AFFINE, data, Image.Resampling.BICUBIC)
    noise = np.random.default_rng(row).integers(0, 256, (CANVAS, CANVAS), np.uint8)
    canvas = Image.fromarray(np.repeat(noise[..., None], 3, 2))
    canvas.paste(put, (0, 0), put.getchannel("A"))
    points = (landmarks(portraits.sample(row)) * DRAWN - middle) @ matrix.T + where - 0.5
    return canvas, points


def dots(picture: Image.Image) -> np.ndarray:
    """The middles [4,2] of the dots: upper left, upper right, lower left, lower right."""
    distance = np.abs(np.asarray(picture).astype(int) - DOT).sum(2)
    weight = (1 - distance / 200).clip(0)
    y, x = np.mgrid[: weight.shape[0], : weight.shape[1]]
    found = []
    half_y, half_x = split(weight, y), split(weight, x)
    for upper in (True, False):
        for left in (True, False):
            part = weight * ((y < half_y) == upper) * ((x < half_x) == left)
            assert part.sum() > 3, "a dot is not in the picture"
            found.append((np.average(x, weights=part), np.average(y, weights=part)))
    return np.array(found)


def split(weight: np.ndarray, place: np.ndarray) -> float:
    """Between the lower and the higher dots along an axis."""
    seen = place[weight > 0.3]
    return (seen.min() + seen.max()) / 2


def expected(landmarks: np.ndarray) -> np.ndarray:
    """Where the points belong in the square, by FFHQ's rule written in complex numbers: [4,2] in pixels."""
    eye_left, eye_right, *corners = (complex(*point) for point in landmarks)
    eyes, mouth = (eye_left + eye_right) / 2, sum(corners) / 2
    across = (eye_right - eye_left) - 1j * (mouth - eyes)
    across *= max(2 * abs(eye_right - eye_left), 1.8 * abs(mouth - eyes)) / abs(across)
    middle = eyes + 0.1 * (mouth - eyes)
    inside = [((complex(*point) - middle) / across + (1 + 1j)) / 2 * SIZE - (0.5 + 0.5j) for point in landmarks]
    return np.array([(point.real, point.imag) for point in inside])


def sixty_eight(points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """dlib's layout with these middles of the eyes and corners of the mouth; all other points anywhere."""
    whole = rng.uniform(0, 500, (68, 2))
    for start, middle in ((36, points[0]), (42, points[1])):
        ring = rng.normal(size=(6, 2))
        whole[start : start + 6] = middle + ring - ring.mean(0)
    whole[48], whole[54] = points[2], points[3]
    return whole


# ---------------------------------------------------------------- the square


@given(st.integers(0, 2**32 - 1))
def test_the_square_agrees_with_the_published_rule_in_every_layout(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.uniform(50, 450, (4, 2))
    eye_left, eye_right, mouth = points[0], points[1], (points[2] + points[3]) / 2
    eye_to_eye, eye_to_mouth = eye_right - eye_left, mouth - (eye_left + eye_right) / 2
    x = eye_to_eye - np.flipud(eye_to_mouth) * [-1, 1]
    x = x / np.hypot(*x) * max(np.hypot(*eye_to_eye) * 2.0, np.hypot(*eye_to_mouth) * 1.8)
    y = np.flipud(x) * [-1, 1]
    c = (eye_left + eye_right) / 2 + eye_to_mouth * 0.1
    wanted = np.stack([c - x - y, c - x + y, c + x + y, c + x - y])
    assert np.allclose(face_alignment.quad(points), wanted)
    assert np.allclose(face_alignment.quad(np.insert(points, 2, (7, 7), axis=0)), wanted)  # a nose does not matter
    assert np.allclose(face_alignment.quad(sixty_eight(points, rng)), wanted)


def test_an_upright_face_has_an_upright_square_from_its_top_left_corner() -> None:
    corners = face_alignment.quad(np.array([(40, 50), (60, 50), (43, 75), (57, 75)]))
    assert np.allclose(corners, [(5, 7.5), (5, 97.5), (95, 97.5), (95, 7.5)])


@pytest.mark.parametrize("shape", [(3, 2), (68, 3), (8,), (0, 2)])
def test_other_layouts_raise_value_errors(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="landmarks have the shape"):
        face_alignment.quad(np.ones(shape))


@pytest.mark.parametrize("points", [[(9, 9)] * 4, [(9, 9), (9.5, 9), (9, 9.4), (9.2, 9.4)], [(math.nan, 1)] * 4])
def test_points_that_span_no_square_are_one_line(points: list[tuple[float, float]]) -> None:
    with pytest.raises(InputError, match="too close together"):
        face_alignment.quad(np.array(points))


# ---------------------------------------------------------------- the picture


@settings(max_examples=25, deadline=None)
@given(PLACES)
def test_eyes_and_mouth_come_to_the_same_places_whatever_the_turn_scale_and_shift(place: tuple) -> None:
    picture, points = photograph(*place)
    aligned = face_alignment.align(picture, face_alignment.quad(points), SIZE)
    assert aligned.size == (SIZE, SIZE) and aligned.mode == "RGB"
    assert np.abs(dots(aligned) - expected(points)).max() < 1
    straight, own = photograph(place[0], 0, 1, 0, 0)
    assert np.abs(dots(aligned) - dots(face_alignment.align(straight, face_alignment.quad(own), SIZE))).max() < 1


@pytest.mark.parametrize("times", [3, 9])
def test_a_large_photograph_is_reduced_first_and_gives_the_same(times: int) -> None:
    picture, points = photograph(3, 20, 1.2, 10, -20)
    larger = picture.resize((CANVAS * times, CANVAS * times), Image.Resampling.BICUBIC)
    small, large = (
        np.asarray(face_alignment.align(one, face_alignment.quad(where), SIZE)).astype(float)
        for one, where in ((picture, points), (larger, (points + 0.5) * times - 0.5))
    )
    assert np.abs(small - large).mean() < 6  # of 255; noise and edges apart, the same picture
    assert np.abs(dots(Image.fromarray(large.astype(np.uint8))) - expected(points)).max() < 1


@pytest.mark.parametrize("edges", [(265, 0, 640, 640), (0, 265, 640, 640), (0, 0, 390, 640), (250, 240, 400, 420)])
def test_a_face_at_the_border_is_continued_by_its_reflection_without_a_seam(edges: tuple[int, int, int, int]) -> None:
    picture, points = photograph(5, 0, 1, 0, 0)
    whole = np.asarray(face_alignment.align(picture, face_alignment.quad(points), SIZE)).astype(int)
    left, top, *_ = edges
    corners = face_alignment.quad(points - (left, top))
    cut = face_alignment.align(picture.crop(edges), corners, SIZE)
    assert np.abs(dots(cut) - expected(points)).max() < 1
    pixels = np.asarray(cut).astype(int)
    inner = slice(SIZE // 2 - 20, SIZE // 2 + 20)
    assert np.abs(pixels - whole)[inner, inner].mean() < 3  # the face itself is not touched
    assert not (pixels == 0).all(2).any(), "nothing is left black"


def test_the_continuation_is_ever_more_blurred_and_ends_near_the_median_colour() -> None:
    pixels = np.random.default_rng(0).integers(0, 60, (200, 200, 1), np.uint8).repeat(3, 2)
    pixels[:, 140:] += 180  # the brighter part, and its reflection, is the smaller
    corners = np.array([(-150, -150), (-150, 250), (250, 250), (250, -150)], dtype=float)
    out = np.asarray(face_alignment.align(Image.fromarray(pixels), corners, 256)).astype(float)[..., 1]
    assert out[110:200, 200:].mean() > 160 and out[:20, 240:].max() < 110
    column = out[:, 110:160]  # from the continuation above down into the picture
    assert column[:90].std() < 3 < column[108:120].std() < column[140:].std()


def test_a_face_outside_the_picture_is_one_line_and_a_huge_square_costs_no_memory() -> None:
    picture = Image.new("RGB", (64, 48), "red")
    square = np.array([(0, 0), (0, 1), (1, 1), (1, 0)], dtype=float)
    with pytest.raises(InputError, match="outside the picture"):
        face_alignment.align(picture, square * 50 + 500, 32)
    assert face_alignment.align(picture, square * 1e6 - 5e5, 32).size == (32, 32)


# ---------------------------------------------------------------- which face


def face(x: float, y: float, scale: float) -> np.ndarray:
    return np.array([(0, 0), (2, 0), (0.4, 2.4), (1.6, 2.4)]) * scale + (x, y)


def detector(*found: np.ndarray) -> face_alignment.Detector:
    def find(picture: Image.Image) -> Sequence[np.ndarray]:
        return found

    return find


THREE = detector(face(300, 100, 20), face(20, 100, 10), face(160, 90, 35))
PICTURE = Image.new("RGB", (500, 300))


def test_the_largest_face_is_taken_with_a_warning_that_counts_them() -> None:
    look = face_alignment.detect(PICTURE, THREE)
    assert look.corners is not None and np.allclose(look.corners, face_alignment.quad(face(160, 90, 35)))
    assert look.warning is not None and "3 faces" in look.warning and "number 2 from the left" in look.warning
    alone = face_alignment.detect(PICTURE, detector(face(50, 60, 20)))
    assert alone.count == 1 and alone.warning is None


@pytest.mark.parametrize(("number", "wanted"), [(1, (20, 100, 10)), (2, (160, 90, 35)), (3, (300, 100, 20))])
def test_faces_are_counted_from_left_to_right(number: int, wanted: tuple[float, float, float]) -> None:
    look = face_alignment.detect(PICTURE, THREE, number)
    assert look.corners is not None and np.allclose(look.corners, face_alignment.quad(face(*wanted)))


@pytest.mark.parametrize(("find", "number"), [(THREE, 4), (THREE, 0), (detector(), 1), (detector(face(9, 9, 9)), 2)])
def test_a_face_that_is_not_there_is_one_line(find: face_alignment.Detector, number: int) -> None:
    with pytest.raises(InputError, match=r"--face \d: \d faces? found in the picture, "):
        face_alignment.detect(PICTURE, find, number)


def test_without_a_face_the_centre_is_taken_and_points_that_are_no_face_do_not_count() -> None:
    speck = np.full((68, 2), 7.0)
    assert face_alignment.detect(PICTURE, detector()).warning == face_alignment.detect(PICTURE, detector(speck)).warning
    look = face_alignment.detect(PICTURE, detector())
    assert look.corners is None and "no face" in str(look.warning)
    notes: list[str] = []
    wide = Image.fromarray(np.arange(60 * 40 * 3, dtype=np.uint8).reshape(40, 60, 3))
    assert np.array_equal(np.asarray(face_alignment.crop(wide, None, 40, notes)), np.asarray(wide)[:, 10:50])
    assert any("centre" in note for note in notes)


def test_a_picture_that_is_aligned_already_keeps_its_pixels() -> None:
    picture, points = photograph(8, 30, 1, 0, 0)
    aligned = face_alignment.align(picture, face_alignment.quad(points), SIZE)
    corners = face_alignment.quad(expected(points))
    notes: list[str] = []
    assert face_alignment.is_aligned(corners, aligned.size) and not face_alignment.is_aligned(
        corners + 0.1 * SIZE, aligned.size
    )
    assert np.array_equal(np.asarray(face_alignment.crop(aligned, corners, SIZE, notes)), np.asarray(aligned))
    assert notes == []


def test_without_the_extra_there_is_no_detector_and_a_changed_model_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    from types import SimpleNamespace

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    face_alignment.detector.cache_clear()
    assert face_alignment.detector() is None
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / face_alignment.LANDMARKS).write_bytes(b"not the points")
    there = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: there)
    face_alignment.detector.cache_clear()
    with pytest.raises(InputError, match=r"is not dlib's published file: pip install 'deltaspace\[faces\]'"):
        face_alignment.detector()
    face_alignment.detector.cache_clear()
