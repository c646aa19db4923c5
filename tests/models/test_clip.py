"""CLIP with a small random network: preparation of images, text differences, unusual texts."""

from __future__ import annotations

import pytest
import tiny_project
import torch
from torch.nn import functional as F

from kernels.box_resample import box_resample
from pipeline.models.clip import OPENAI_MEAN, OPENAI_STD, Clip, delta, words

E, SEEN = tiny_project.E, 32  # the picture size its image tower takes
TEMPLATES = ("a portrait of {}", "{}", "the {} of a stranger")
ODD_TEXTS = {
    "empty": "",
    "blank": " \t\n",
    "japanese": "赤い髪の顔",
    "arabic": "وجه بشعر أحمر",
    "emoji": "face with 👓 and 💄",
    "combining": "fáce",
    "nul": "face\x00with\x07hair",
    "markup": "<start_of_text> &lt;b&gt; <end_of_text>",
    "braces": "{} {0} {face!r} {{",
    "long": "face with red hair " * 3000,
    "one_word": "a" * 20_000,
    "not_a_character": "face \udce9",
}


@pytest.fixture(scope="module")
def clip() -> Clip:
    torch.manual_seed(0)
    return Clip(tiny_project.CLIP, vocabulary=frozenset(tiny_project.VOCABULARY)).eval().requires_grad_(False)


@pytest.mark.parametrize("resolution", [16, 32, 48, 50, 64])
def test_clip_input_is_the_exact_box_filter_of_the_image(clip: Clip, resolution: int) -> None:
    images = torch.rand(2, 3, resolution, resolution) * 2 - 1
    seen = clip.clip_input(images)
    assert seen.shape == (2, 3, SEEN, SEEN) and clip.image_size == SEEN
    assert torch.equal(seen, box_resample(images, SEEN))
    expected = clip.model.encode_image(box_resample(images, SEEN))
    torch.testing.assert_close(clip.embed_images(images), expected)


def test_normalisation_uses_openais_mean_and_deviation() -> None:
    torch.manual_seed(0)
    clip = Clip(tiny_project.CLIP, normalise=True)
    images = torch.rand(2, 3, 50, 50) * 2 - 1
    pixels = box_resample((images + 1) / 2, SEEN)
    for channel, (mean, std) in enumerate(zip(OPENAI_MEAN, OPENAI_STD, strict=True)):
        expected = (pixels[:, channel] - mean) / std
        torch.testing.assert_close(clip.clip_input(images)[:, channel], expected, atol=1e-5, rtol=1e-5)


def test_image_embeddings_are_not_normalised_and_text_embeddings_are(clip: Clip) -> None:
    pictures, texts = clip.embed_images(torch.randn(4, 3, 16, 16)), clip.embed_texts(["face", "a red hair", ""])
    assert pictures.shape == (4, E) and texts.shape == (3, E) and clip.dim == E
    assert not torch.allclose(pictures.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(3))


def test_embeddings_are_independent_of_the_batch(clip: Clip) -> None:
    images, texts = torch.randn(3, 3, 16, 16), ["face", "face with red hair", "happy"]
    torch.testing.assert_close(
        torch.cat([clip.embed_images(image[None]) for image in images]), clip.embed_images(images), atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(
        torch.cat([clip.embed_texts([text]) for text in texts]), clip.embed_texts(texts), atol=1e-5, rtol=1e-4
    )


def test_a_text_feature_is_the_unit_mean_over_all_templates(clip: Clip) -> None:
    filled = ["a portrait of red hair", "red hair", "the red hair of a stranger"]
    mean = torch.stack([clip.embed_texts([text])[0] for text in filled]).mean(dim=0)
    torch.testing.assert_close(clip.text_feature("red hair", TEMPLATES), mean / mean.norm(), atol=1e-5, rtol=1e-4)


def test_a_text_delta_is_a_difference_and_zero_for_equal_texts(clip: Clip) -> None:
    delta_t = clip.text_delta("face", "face with red hair", TEMPLATES)
    ends = [clip.text_feature(text, TEMPLATES) for text in ("face", "face with red hair")]
    assert torch.equal(delta_t, ends[1] - ends[0])
    assert delta_t.shape == (E,) and 0 < delta_t.norm().item() < 2
    assert not torch.isclose(delta_t.norm(), torch.tensor(1.0))
    assert torch.equal(clip.text_delta("face with red hair", "face", TEMPLATES), -delta_t)
    assert not clip.text_delta("face with red hair", "face with red hair", TEMPLATES).any()


@pytest.mark.parametrize("text", ODD_TEXTS.values(), ids=ODD_TEXTS)
def test_any_text_has_a_finite_delta(clip: Clip, text: str) -> None:
    delta_t = clip.text_delta("face", text, TEMPLATES)
    assert delta_t.shape == (E,) and torch.isfinite(delta_t).all()
    assert not clip.text_delta(text, text, TEMPLATES).any()
    assert isinstance(clip.unknown_words(text), list)


def test_tokens_beyond_the_context_length_are_cut_off(clip: Clip) -> None:
    start = " ".join(["face"] * 60)
    assert torch.equal(clip.embed_texts([start + " with red hair"]), clip.embed_texts([start + " happy"]))
    assert clip.tokenizer([start]).shape == (1, tiny_project.CLIP["text"]["context_length"])


@pytest.mark.parametrize("merges", [0, 1, 300])
def test_a_small_vocabulary_has_the_bytes_twice_the_first_merges_and_two_marks(merges: int) -> None:
    clip = Clip({**tiny_project.CLIP, "merges": merges})
    size = 512 + merges + 2
    assert clip.tokenizer.vocab_size == size
    assert clip.model.token_embedding.weight.shape[0] == size
    tokens = clip.tokenizer(["any face at all, 赤"])
    assert tokens.max().item() == size - 1 and tokens.min().item() == 0  # the end mark, and padding


def test_without_a_number_of_merges_the_vocabulary_is_the_published_one() -> None:
    from pipeline.models.clip import _tokenizer

    assert _tokenizer(77, None).vocab_size == 49_408
    assert _tokenizer(77, None)(["a photo of a cat"])[0, :7].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407]


def test_unknown_words_are_those_without_a_training_caption_each_once_in_order(clip: Clip) -> None:
    assert clip.unknown_words("A zebra, with RED hair; a Zebra's happy 42 ears") == ["zebra", "s", "ears"]
    assert clip.unknown_words("face with red hair") == clip.unknown_words("") == clip.unknown_words("123 !?") == []
    assert clip.unknown_words("赤い face") == ["赤い"]


def test_a_clip_without_vocabulary_has_no_unknown_words() -> None:
    assert Clip(tiny_project.CLIP).unknown_words("zebra") == []


def test_words_are_lower_case_letters_of_any_script() -> None:
    assert words("Ein grünes Gesicht_mit 2 Brillen-Gläsern") == [
        "ein",
        "grünes",
        "gesicht",
        "mit",
        "brillen",
        "gläsern",
    ]
    assert words("") == []


def test_delta_is_the_unit_difference_of_unit_vectors() -> None:
    a, b = 5 * torch.randn(3, E), 0.1 * torch.randn(3, E)
    for row in range(3):
        difference = b[row] / b[row].norm() - a[row] / a[row].norm()
        torch.testing.assert_close(delta(a, b)[row], difference / difference.norm())
    assert not delta(a, 3 * a).abs().max() > 0.1  # equal directions: next to nothing, and not nan
    assert not F.normalize(a, dim=1).isnan().any()
    torch.testing.assert_close(delta(7 * a, b), delta(a, b))
