"""Interpolation and style mixing: exact ends, linear styles, spherical noise; and their commands."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from deltaspace.cli import app
from pipeline import interpolation
from pipeline.editors._diffusion import WholeImageEditor, WholeImageParams
from pipeline.models import ode_solvers
from pipeline.models.stylespace import StyleLayout
from pipeline.runtime.errors import InputError
from pipeline.values import Inversion, Source

LAYOUT = StyleLayout((2, 2, 3), (1, 2))
R = 8


class Painter:
    """Optimal denoiser of images that are N(mean colour of the style, 1/4)."""

    objective, space = "eps", "s"

    def __call__(self, x, t, s):
        a = ode_solvers.schedulers()[0].alphas_cumprod[t].view(-1, 1, 1, 1)
        mean = s[:, :3, None, None]
        return (1 - a).sqrt() * (x - a.sqrt() * mean) / (0.25 * a + 1 - a)


@pytest.fixture
def editor() -> WholeImageEditor:
    stats = torch.zeros(LAYOUT.size), torch.ones(LAYOUT.size)
    generator = SimpleNamespace(layout=LAYOUT)
    world = SimpleNamespace(
        denoiser=Painter(), s_stats=stats, generator=generator, device="cpu", absent=lambda name: None
    )
    params = WholeImageParams(1.0, 50, "belm", 1.25, threshold=0.1)
    return WholeImageEditor(world, params)  # type: ignore[arg-type]


def source(seed: int) -> Source:
    chance = torch.Generator().manual_seed(seed)
    image, s = torch.rand(1, 3, R, R, generator=chance) - 0.5, torch.randn(1, LAYOUT.size, generator=chance) / 4
    return Source(image, Inversion(torch.zeros(1, 1, 1)), s, torch.zeros(1, 1))


def test_slerp_stays_on_the_sphere_at_constant_speed() -> None:
    one, other = torch.zeros(2, 1, 2), torch.zeros(2, 1, 2)
    one[:, 0, 0], other[0, 0, 1], other[1, 0, 0] = 2.0, 2.0, 2.0
    third = interpolation.slerp(one, other, 1 / 3)
    torch.testing.assert_close(third[0, 0], torch.tensor([3.0**0.5, 1.0]))
    torch.testing.assert_close(third[1], one[1])  # equal: the angle is 0
    for weight, end in ((0.0, one), (1.0, other)):
        torch.testing.assert_close(interpolation.slerp(one, other, weight), end)


def test_weights_0_and_1_are_the_images(editor: WholeImageEditor) -> None:
    one, other = source(1), source(2)
    start, stop = (interpolation.endpoint(editor, editor.prepare(each)) for each in (one, other))
    result = interpolation.between(editor, start, stop, [0, 0.5, 1])
    torch.testing.assert_close(result[::2], torch.cat([one.image, other.image]), atol=1e-3, rtol=0)
    middle = result[1].mean(dim=(1, 2)) - (result[0] + result[2]).mean(dim=(1, 2)) / 2
    assert middle.abs().max() < 0.2 and (result[1] - result[0]).abs().max() > 0.1


def test_an_edit_as_end_is_guided_and_images_are_not(editor: WholeImageEditor) -> None:
    person, other = source(1), source(2)
    whole = interpolation.endpoint(editor, editor.prepare(person))
    edited = interpolation.Endpoint(whole.noise, person.s + 0.5, person.s)
    result = interpolation.between(editor, whole, edited, [0, 1])
    expected = editor.sample(edited.noise, edited.s, person.s).x.clamp(-1, 1)
    assert torch.equal(result[1:], expected) and not torch.equal(expected, editor.sample(edited.noise, edited.s).x)
    calls = []
    draw = editor.networks.denoiser

    def counted(x, t, s):
        calls.append(t)
        return draw(x, t, s)

    counted.objective, counted.space = "eps", "s"  # type: ignore[attr-defined]
    editor.networks.denoiser = counted  # type: ignore[misc]
    interpolation.between(editor, whole, interpolation.Endpoint(editor.invert(other), other.s, other.s), [0.5])
    assert len(calls) == 49 + 50  # the inversion of the other image, and sampling without guidance


def test_mixing_replaces_the_given_levels_only(editor: WholeImageEditor) -> None:
    content, style = (interpolation.endpoint(editor, editor.prepare(source(seed))) for seed in (1, 2))
    s = content.s.clone()
    s[:, 2:4] = style.s[:, 2:4]
    expected = editor.sample(content.noise, s).x.clamp(-1, 1)
    assert torch.equal(interpolation.mixed(editor, content, style, ["medium"]), expected)
    whole = interpolation.mixed(editor, content, style, ["coarse", "medium", "fine"])
    assert torch.equal(whole, editor.sample(content.noise, style.s).x.clamp(-1, 1))
    with pytest.raises(InputError, match=r"no level 'fin' \(did you mean 'fine'\?\): there are coarse, medium, fine"):
        interpolation.mixed(editor, content, style, ["fin"])


# ---------------------------------------------------------------- the commands


@pytest.fixture
def pictures(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("DELTASPACE_ROOT", str(tiny))
    monkeypatch.chdir(tmp_path)
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"{number}.png")
    return ["0.png", "1.png"]


@pytest.mark.parametrize("ends", [["1.png"], ["portrait:3"]])
def test_interpolate_writes_every_picture_and_a_grid(
    pictures: list[str], ends: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.run(["interpolate", "0.png", *ends, "--steps", "3", "--domain", "tiny", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["pictures"] == [f"between/0-between-{number}.png" for number in range(3)]
    assert all(Image.open(path).size == (16, 16) for path in told["pictures"])
    assert Image.open(told["grid"]).width > 3 * 128


def test_mix_writes_a_picture_per_level_or_the_levels_asked_for(
    pictures: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.run(["mix", *pictures, "--domain", "tiny", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["pictures"] == [f"mixed/0-{level}.png" for level in ("coarse", "medium", "fine")]
    assert app.run(["mix", *pictures, "--levels", "coarse,fine", "--domain", "tiny", "--json", "-o", "other"]) == 0
    assert json.loads(capsys.readouterr().out)["pictures"] == ["other/0-coarse-fine.png"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["interpolate", "0.png"], "give two images"),
        (["interpolate", "none.png", "1.png"], "none.png does not exist"),
        (["interpolate", "0.png", "portrait:x"], "'portrait:x' is no drawn portrait"),
        (["interpolate", "0.png", "typo.png"], "typo.png does not exist"),
        (["interpolate", "0.png", "1.png", "face"], "give two images"),
        (["mix", "0.png", "1.png", "-o", "0.png"], "0.png is one file"),
        (["interpolate", "0.png", "face with red hair"], "dvc repro mapper@tiny"),
        (["mix", "0.png", "1.png", "--levels", "corse"], "did you mean 'coarse'?"),
    ],
)
def test_bad_input_is_one_line(
    pictures: list[str], words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.run([*words, "--domain", "tiny"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and said in err and len([line for line in err.splitlines() if "warning" not in line]) == 1
    assert not Path("between").exists() and not Path("mixed").exists()
