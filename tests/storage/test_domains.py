"""Domains are data: the shipped files are sound, and mistakes in one are named."""

from collections import Counter
from pathlib import Path

import pytest

from pipeline.runtime import files
from pipeline.runtime.errors import InputError
from pipeline.storage import domains
from pipeline.storage.domains import NETWORKS, Domain

ROOT = Path(domains.__file__).resolve().parents[2]
SMALL = """
resolution: 16
neutral: face
templates: ["{}", "a {}"]
prompts:
  - {text: happy face, attribute: expression, value: smile}
  - {text: green face}
"""


def load(folder: Path, text: str) -> Domain:
    (folder / "domains").mkdir(exist_ok=True)
    (folder / "domains/tiny.yaml").write_text(text, encoding="utf-8")
    return domains.load("tiny", folder)


def test_a_small_file_is_a_whole_domain_with_networks_under_its_own_name(tmp_path):
    domain = load(tmp_path, SMALL)
    assert (domain.name, domain.resolution, domain.neutral, domain.level_split) == ("tiny", 16, "face", (3, 7))
    assert domain.prompts[0].attribute == "expression" and domain.prompts[1].attribute is None
    assert {domain.weights(name).path for name in NETWORKS} == {
        f"data/pretrained/tiny/{name}.safetensors" for name in NETWORKS
    }
    assert domain.renderer is None and domain.defaults == {}


def test_unknown_domains_get_the_nearest_name(tmp_path):
    load(tmp_path, SMALL)
    with pytest.raises(InputError, match=r"unknown domain 'tinny' \(did you mean 'tiny'\?\): there are tiny"):
        domains.load("tinny", tmp_path)
    with pytest.raises(InputError, match=r"unknown domain '\.\./tiny'"):
        domains.load("../tiny", tmp_path)
    with pytest.raises(InputError, match="there are none"):
        domains.load("tiny", tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("neutral", "nuetral", r"domains/tiny.yaml: nuetral is unknown \(did you mean 'neutral'"),
        ("neutral: face", "", r"domains/tiny.yaml: neutral is missing"),
        ("16", "20", "resolution is 20: a power of two"),
        ("16", "big", r"domains/tiny.yaml: resolution is 'big': a whole number"),
        ('"a {}"', '"a face"', r"the template 'a face' must hold '\{\}' exactly once"),
        ('"a {}"', '"a {} {x}"', "must hold"),
        ("green", "happy", "the prompt 'happy face' stands twice"),
        ("green face", "' '", "the text is empty"),
        ("smile}", "smile, also: {glasses: none}}", "needs both split: combined and, in also, what else"),
        ("smile}", "smile, split: combined}", "needs both split: combined and, in also, what else"),
        ("smile}", "smile, split: combined, also: {expression: sad}}", "needs an attribute and a value besides"),
        (", value: smile", "", "needs both an attribute and a value"),
        ("smile}", "smile, split: tset}", r"split is 'tset'.*one of seen, heldout, combined"),
        ("resolution: 16", "resolution: 16\nclip: {path: /etc/passwd}", "must lie inside the project"),
        ("resolution: 16", "resolution: 16\nclip: {path: a/../../b}", "must lie inside the project"),
        ("resolution: 16", "resolution: 16\nclip: {path: data/pretrained/mine/clip.safetensors}", "put a copy there"),
        ("resolution: 16", "resolution: 16\nclip: {sha256: abc}", "'abc' is not a sha256"),
        ("resolution: 16", "resolution: 16\nclip: {hash: abc}", "clip.hash is unknown"),
        ("resolution: 16", "resolution: 16\nclip: model.pt", "clip is 'model.pt': a mapping"),
        ("resolution: 16", "resolution: &r 16", "anchors and aliases"),
        ('["{}", "a {}"]', "none.txt", "templates names none.txt, which cannot be read"),
    ],
)
def test_each_mistake_is_named(tmp_path, old, new, error):
    assert old in SMALL
    with pytest.raises(InputError, match=error) as caught:
        load(tmp_path, SMALL.replace(old, new))
    assert "\n" not in str(caught.value)


def test_an_unknown_network_gets_the_nearest_name(tmp_path):
    with pytest.raises(InputError, match="did you mean 'encoder'"):
        load(tmp_path, SMALL).weights("encodr")


@pytest.mark.parametrize("name", domains.names(ROOT))
def test_the_shipped_domains_load_and_have_prompts(name):
    domain = domains.load(name, ROOT)
    assert domain.templates and domain.prompts
    for network in NETWORKS:
        found = domain.weights(network)
        assert found.licence and (found.url is None or found.url.startswith(("https://", "gdrive:")))


def test_the_shipped_domains_are_these():
    assert domains.names(ROOT) == ("cat", "church", "ffhq", "horse", "portraits")
    ffhq = domains.load("ffhq", ROOT)
    assert len(ffhq.templates) == 79 == len(set(ffhq.templates))  # CLIP's 80 without 'a photo of many {}.'
    assert (ffhq.resolution, ffhq.clip_normalise, ffhq.neutral) == (1024, False, "face")
    assert {domains.load(name, ROOT).resolution for name in ("cat", "church", "horse")} == {256}


def test_portraits_prompts_ask_for_values_that_the_renderer_knows():
    from pipeline.portraits import ATTRIBUTES

    prompts = domains.load("portraits", ROOT).prompts
    for prompt in prompts:
        assert prompt.asks and all(value in ATTRIBUTES[name] for name, value in prompt.asks.items()), prompt
        assert (len(prompt.asks) > 1) == (prompt.split == "combined"), prompt
    seen = Counter((prompt.attribute, prompt.value) for prompt in prompts if prompt.split == "seen")
    assert len(seen) >= 20 and max(seen.values()) == 1


def test_seen_prompts_use_phrases_of_the_training_captions_and_heldout_ones_do_not():
    from pipeline.portraits import PHRASES

    domain = domains.load("portraits", ROOT)
    for prompt in domain.prompts:
        if prompt.split == "combined":  # of words that captions have, in an order of their own
            continue
        taught, untaught = PHRASES[prompt.attribute][prompt.value]
        phrases = taught if prompt.split == "seen" else untaught
        texts = {f"{phrase} {domain.neutral}" for phrase in phrases} | {
            f"{domain.neutral} {phrase}" for phrase in phrases
        }
        assert prompt.text in texts, prompt


def test_the_shipped_weights_are_the_ones_the_domain_names() -> None:
    domain = domains.load("portraits", ROOT)
    for network in domain.networks:
        entry = domain.weights(network)
        assert entry.sha256 == files.digest(ROOT / entry.path), f"{network}: domains/portraits.yaml"


def test_only_faces_of_photographs_are_aligned() -> None:
    assert {name: domains.load(name, ROOT).aligned for name in ("portraits", "ffhq", "cat", "church", "horse")} == {
        "portraits": None,
        "ffhq": "ffhq",
        "cat": None,
        "church": None,
        "horse": None,
    }
