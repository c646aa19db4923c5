"""Training of the denoiser: loss, convergence, resuming to the byte, copying the shipped file, training data."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from pipeline import denoiser_data, denoiser_training, sampling
from pipeline.denoiser_training import DiffusionParams
from pipeline.models import ode_solvers
from pipeline.models.stylespace import StyleLayout
from pipeline.models.unet import Denoiser
from pipeline.runtime.errors import InputError
from pipeline.storage import artefacts, images, weights
from pipeline.training import generator_for

NUMBERS = {"resolution": 16, "style_sizes": (3, 2, 0), "channels": 16, "mult": (1, 2), "time_dim": 24, "style_dim": 20}
NUMBERS |= {"attention": (), "space": "s"}
PARAMS = DiffusionParams(6, "s", "random", batch=4, lr=2e-3, weight_decay=0.01, clip=1, ema=0.99, seed=5)


def circles(count: int, size: int = 16):
    """Discs on grey, uint8 [N,3,R,R], and what they look like: colour, x and y [N,5], as raw codes of uneven scale."""
    generator = torch.Generator().manual_seed(0)
    colour, place = torch.rand(count, 3, generator=generator), torch.rand(count, 2, generator=generator)
    grid = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, size)] * 2, indexing="xy"))
    distance = (grid[None] - (place - 0.5)[:, :, None, None]).square().sum(dim=1, keepdim=True).sqrt()
    inside = ((0.5 - distance) * size / 2).clamp(0, 1)
    images = inside * colour[:, :, None, None] + (1 - inside) * 0.5
    s = torch.cat([colour, place], dim=1) * torch.tensor([5.0, 1, 0.2, 1, 1]) + 1
    return (images * 255).round().byte(), s


@pytest.fixture(scope="module")
def batches():
    images, s = circles(512)
    return denoiser_training.in_memory(images, s.half(), s.mean(dim=0), s.std(dim=0))


def train(params, batches, checkpoint=None, every=100, stop=None):
    network = denoiser_training.initial_network(params, None, NUMBERS)
    average, measured = network, {}
    for done, measured, average in denoiser_training.train(network, params, batches, 512, checkpoint, every):  # noqa: B007
        if done == stop:
            break
    return average, measured


def test_batches_are_images_in_range_and_codes_of_unit_scale(batches):
    x0, s = batches(torch.arange(512), generator_for(0, 0))
    assert x0.shape == (512, 3, 16, 16) and x0.min() >= -1 and x0.max() <= 1
    torch.testing.assert_close(s.std(dim=0), torch.ones(5), rtol=0.01, atol=0)
    torch.testing.assert_close(s.mean(dim=0), torch.zeros(5), rtol=0, atol=0.01)


def test_loss_is_the_squared_error_of_the_predicted_noise():
    torch.manual_seed(0)
    x0, s = torch.rand(64, 3, 16, 16) * 2 - 1, torch.randn(64, 5)
    abar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), dim=0)
    seen = {}

    def omniscient(x, t, code):
        a = abar[t].view(-1, 1, 1, 1)
        seen.update(t=t, s=code)
        seen["noise"] = (x - a.sqrt() * x0) / (1 - a).sqrt()
        return seen["noise"].float()

    assert denoiser_training.loss(omniscient, x0, s, generator_for(1, 2)) < 1e-4
    assert torch.equal(seen["s"], s)
    assert seen["t"].min() < 100 and seen["t"].max() > 900
    assert abs(seen["noise"].mean()) < 0.02 and abs(seen["noise"].std() - 1) < 0.02
    nothing = denoiser_training.loss(lambda x, t, code: torch.zeros_like(x), x0, s, generator_for(1, 2))
    torch.testing.assert_close(nothing.double(), seen["noise"].square().mean(), rtol=1e-3, atol=0)
    assert denoiser_training.loss(lambda x, t, code: torch.zeros_like(x), x0, s, generator_for(1, 3)) != nothing


@pytest.mark.parametrize("objective", ["eps", "v", "flow"])
def test_inputs_and_targets_follow_the_formulas_of_the_objectives(objective):
    torch.manual_seed(0)
    x0, noise, t = torch.randn(3, 3, 4, 4), torch.randn(3, 3, 4, 4), torch.tensor([0, 400, 999])
    a = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), dim=0)[t].view(-1, 1, 1, 1).sqrt()
    b, part = (1 - a**2).sqrt(), t.view(-1, 1, 1, 1) / 1000
    noisy, target = {
        "eps": (a * x0 + b * noise, noise),
        "v": (a * x0 + b * noise, a * noise - b * x0),
        "flow": ((1 - part) * x0 + part * noise, noise - x0),
    }[objective]
    both = ode_solvers.add_noise(x0, noise, t, objective), denoiser_training.target(x0, noise, t, objective)
    for found, expected in zip(both, (noisy, target), strict=True):
        torch.testing.assert_close(found.double(), expected.double(), rtol=1e-4, atol=1e-4)


def test_a_trained_flow_reconstructs_the_image(batches):
    numbers = {**NUMBERS, "objective": "flow"}
    params = replace(PARAMS, steps=150, batch=16, lr=6e-3, ema=0.95)
    network = denoiser_training.initial_network(params, None, numbers)
    before = denoiser_training.validation_loss(network, batches, 64)
    *_, (_, _, average) = denoiser_training.train(network, params, batches, 512)
    assert denoiser_training.validation_loss(average, batches, 64) < 0.5 * before
    x0, s = (value[:8] for value in batches(torch.arange(8), generator_for(0, 0)))
    path = ode_solvers.Trajectory(10, "midpoint")
    round_trip = ode_solvers.decode(average, ode_solvers.encode(average, x0, s, path, "flow"), s, path, "flow").x
    assert (round_trip - x0).square().mean() < 0.02 * x0.var()


@pytest.mark.parametrize(("objective", "expected"), [("eps", 1.0), ("flow", 1.0416)])
def test_loss_by_time_covers_all_times(batches, objective, expected):
    class Silent:
        device = torch.device("cpu")

        def __call__(self, x, t, s):
            return torch.zeros_like(x)

    network = Silent()
    network.objective = objective
    curve = denoiser_training.loss_by_time(network, batches, 32, levels=4)
    assert [row["step"] for row in curve.rows] == [125, 375, 625, 875]
    assert all(row["loss"] == pytest.approx(expected, rel=0.03) for row in curve.rows)


def test_images_before_an_edit_are_blended_in_at_late_times_and_the_velocity_leads_to_x0():
    torch.manual_seed(0)
    x0, before, s = torch.randn(4000, 3, 2, 2), torch.randn(4000, 3, 2, 2), torch.zeros(4000, 1)
    seen = {}

    def network(x, t, s):
        seen.update(x=x, t=t)
        return torch.zeros_like(x)

    plain = denoiser_training.loss(network, x0, s, generator_for(0, 1), "flow")
    shown, part = seen["x"].clone(), (seen["t"] / 1000)[:, None, None, None]
    blended = denoiser_training.loss(network, x0, s, generator_for(0, 1), "flow", before)
    added = seen["x"] - shown  # (1 - t) times a share of what the edit took away
    share = (added / ((1 - part) * (before - x0))).mean(dim=(1, 2, 3))
    early, late = (part < 0.2).flatten(), (part > 0.7).flatten()
    assert share[early].abs().max() < 1e-3 and share.max() <= 1.001
    assert abs(share[late].mean() - 0.5) < 0.02
    assert blended > plain
    goal_of = lambda x, t, s: (x - x0) / (t / 1000).clamp(min=1e-3)[:, None, None, None]  # noqa: E731
    assert denoiser_training.loss(goal_of, x0, s, generator_for(0, 1), "flow", before) < 1e-3  # leads to x0 from there
    assert torch.equal(denoiser_training.loss(network, x0, s, generator_for(0, 1), "flow", x0), plain)


def test_training_lowers_the_loss_and_uses_the_condition(batches):
    params = replace(PARAMS, steps=150, batch=16, lr=6e-3, ema=0.95)
    network = denoiser_training.initial_network(params, None, NUMBERS)
    before = denoiser_training.validation_loss(network, batches, 64)
    average, _ = train(params, batches)
    after = denoiser_training.validation_loss(average, batches, 64)
    assert before == pytest.approx(1, abs=0.02)  # zero is predicted
    assert after < 0.1
    x0, s = batches(torch.arange(32), generator_for(0, 0))
    with torch.inference_mode():
        right = denoiser_training.loss(average, x0, s, generator_for(0, 0))
        wrong = denoiser_training.loss(average, x0, s.roll(1, dims=0), generator_for(0, 0))
    assert wrong > 1.05 * right
    x0, s = x0[:8], s[:8]
    path = ode_solvers.Trajectory(100, "ddim")
    round_trip = ode_solvers.decode(average, ode_solvers.encode(average, x0, s, path, "eps"), s, path, "eps").x
    assert (round_trip - x0).square().mean() < 0.3 * x0.var()


def test_a_run_killed_and_resumed_ends_with_the_bytes_of_an_undisturbed_one(batches, tmp_path):
    params = replace(PARAMS, steps=6)
    whole, _ = train(params, batches)
    checkpoint = tmp_path / "state.pt"
    train(params, batches, checkpoint, every=2, stop=3)  # dies with 2 steps saved, 1 lost
    resumed, metrics = train(params, batches, checkpoint, every=2)
    denoiser_training.save(tmp_path / "a", whole)
    denoiser_training.save(tmp_path / "b", resumed)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert torch.isfinite(torch.tensor(metrics["loss"]))


def test_the_average_with_the_lowest_validation_loss_is_kept_also_over_a_resume(batches, tmp_path):
    """The validation loss is lowest after two steps."""
    params, seen = replace(PARAMS, steps=6), []

    def validate(network):
        seen.append(torch.cat([p.flatten() for p in network.parameters()]).clone())
        return abs(len(seen) - 2)  # initial weights, after two steps, after four, after six

    (*_, (_, _, best)) = denoiser_training.train(
        denoiser_training.initial_network(params, None, NUMBERS),
        params,
        batches,
        32,
        tmp_path / "whole.pt",
        2,
        validate=validate,
    )
    kept = torch.cat([p.flatten() for p in best.parameters()])
    assert len(seen) == 4 and torch.equal(kept, seen[1]) and not torch.equal(kept, seen[3])
    early = denoiser_training.train(
        denoiser_training.initial_network(params, None, NUMBERS),
        params,
        batches,
        32,
        tmp_path / "cut.pt",
        2,
        validate=lambda _: 1.0,
    )
    next(early), next(early), next(early)  # the state of two steps is on disk
    (*_, (_, _, again)) = denoiser_training.train(
        denoiser_training.initial_network(params, None, NUMBERS),
        params,
        batches,
        32,
        tmp_path / "cut.pt",
        2,
        validate=lambda _: 2.0,
    )
    first = torch.cat([p.flatten() for p in again.parameters()])
    assert torch.equal(first, seen[0])  # 1.0 from before the run was cut stayed the lowest


def test_the_seed_changes_the_run(batches):
    first, _ = train(replace(PARAMS, steps=2), batches)
    second, _ = train(replace(PARAMS, steps=2, seed=6), batches)
    assert not torch.equal(first.conv_in.weight, second.conv_in.weight)


def test_initial_network_leaves_the_global_random_state_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    denoiser_training.initial_network(PARAMS, None, NUMBERS)
    assert torch.equal(torch.rand(1), expected)


def test_init_pretrained_starts_from_the_shipped_weights(batches, tmp_path):
    shipped = tmp_path / "denoiser.safetensors"
    torch.manual_seed(0)
    denoiser_training.save(shipped, Denoiser(**NUMBERS))
    params = replace(PARAMS, init="pretrained")
    network = denoiser_training.initial_network(params, shipped, NUMBERS)
    for key, value in denoiser_training.load(shipped).state_dict().items():
        assert torch.equal(network.state_dict()[key], value)
    (_, _, average), *_ = denoiser_training.train(network, params, batches, 512)
    assert not torch.equal(average.conv_out.weight, denoiser_training.load(shipped).conv_out.weight)


def test_init_body_keeps_all_layers_but_those_that_read_codes(batches, tmp_path):
    shipped = tmp_path / "denoiser.safetensors"
    torch.manual_seed(0)
    before = Denoiser(**NUMBERS)
    with torch.no_grad():
        for parameter in before.parameters():
            parameter.normal_(std=0.1)
    denoiser_training.save(shipped, before)
    known, params = denoiser_training.load(shipped), replace(PARAMS, space="w_plus", init="body")
    network = denoiser_training.initial_network(
        params, shipped, {**NUMBERS, "style_sizes": (4, 3, 0), "space": "w_plus"}
    )
    assert network.space == "w_plus" and network.spec["channels"] == 16
    for key, value in network.state_dict().items():
        if ".time_emb_proj.style." in key:
            assert not value.any()  # without effect at first
        elif not key.startswith("class_embedding."):
            assert torch.equal(value, known.state_dict()[key])
    again = denoiser_training.initial_network(params, shipped, {**NUMBERS, "style_sizes": (4, 3, 0), "space": "w_plus"})
    assert all(torch.equal(*pair) for pair in zip(network.parameters(), again.parameters(), strict=True))


def test_init_pretrained_is_refused_for_w_plus():
    with pytest.raises(ValueError, match="set init to body or random"):
        replace(PARAMS, space="w_plus", init="pretrained")


def test_levels_of_w_plus_begin_at_the_same_layers_as_those_of_s():
    layout = StyleLayout((6, 6, 5, 5, 4), split=(1, 3))
    generator = SimpleNamespace(size=16, layout=layout, num_ws=6, style_dim=10)
    assert denoiser_training.network_sizes(generator)["style_sizes"] == (6, 11, 9)
    assert denoiser_training.network_sizes(generator, "w_plus")["style_sizes"] == (10, 20, 30)
    generator.layout = StyleLayout((6, 6, 5, 5, 4), split=(1, 5))  # no fine level: the row of colours alone begins none
    assert denoiser_training.network_sizes(generator)["style_sizes"] == (6, 20, 0)
    assert denoiser_training.network_sizes(generator, "w_plus")["style_sizes"] == (10, 50, 0)


def test_shipped_weights_for_other_codes_are_refused(tmp_path):
    shipped = tmp_path / "denoiser.safetensors"
    denoiser_training.save(shipped, Denoiser(**NUMBERS))
    params = replace(PARAMS, init="pretrained")
    with pytest.raises(InputError, match=r"style_sizes \[3, 2, 0\], not \[4, 2, 0\]"):
        denoiser_training.initial_network(params, shipped, {**NUMBERS, "style_sizes": (4, 2, 0)})
    with pytest.raises(InputError, match="missing"):
        denoiser_training.initial_network(params, tmp_path / "none", NUMBERS)


def test_copy_pretrained_copies_the_shipped_file_byte_for_byte(tmp_path):
    shipped, out = tmp_path / "denoiser.safetensors", tmp_path / "data" / "diffusion.safetensors"
    denoiser_training.save(shipped, Denoiser(**NUMBERS), note="kept")
    denoiser_training.copy_pretrained(shipped, out)
    assert out.read_bytes() == shipped.read_bytes()
    assert sorted(path.name for path in out.parent.iterdir()) == [out.name]


@pytest.mark.parametrize("change", [{"steps": -1}, {"batch": 0}, {"lr": 0.0}, {"ema": 1.0}, {"weight_decay": -1.0}])
def test_invalid_settings_are_refused(change):
    with pytest.raises(ValueError, match=r"expected|above"):
        replace(PARAMS, **change)


@pytest.fixture
def networks(tmp_path, monkeypatch):
    """Five images, four to train on, in two shards, and their codes."""
    paths = artefacts.DomainPaths("tiny", tmp_path)
    chance = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (5, 3, 8, 8), generator=chance).byte()
    split = ["train", "train", "val", "train", "train"]
    for number, rows in enumerate((slice(0, 3), slice(3, 5))):
        name, columns = artefacts.shard_name(number), {"id": list(range(5))[rows], "split": split[rows]}
        encoded = [images.encode_png(image / 127.5 - 1) for image in pixels[rows]]
        artefacts.write_shard(paths.images / name, "images", columns | {"image": encoded, "params": None}, {})
        count = len(encoded)
        w_plus = torch.randn(count, 12, generator=chance)
        reals = columns | {"w_plus": w_plus, "error": torch.zeros(count)}
        artefacts.write_shard(paths.reals / name, "reals", reals, {})
        s, clip = w_plus.unflatten(1, (3, 4)).sum(dim=2).half(), torch.zeros(count, 2)
        columns |= {"source": ["real"] * count, "s": s, "clip": clip}
        artefacts.write_shard(paths.codes / name, "codes", columns, {})
    stats = torch.zeros(1), torch.ones(1)
    monkeypatch.setattr(sampling, "style_stats", lambda networks, space: stats)
    return SimpleNamespace(paths=paths, domain=SimpleNamespace(resolution=8), pixels=pixels)


@pytest.mark.parametrize("space", ["s", "w_plus"])
def test_every_image_has_its_own_code(networks, space, monkeypatch):
    monkeypatch.setattr(denoiser_data, "CHUNK", 3)
    batches, count = denoiser_data.load(networks, "train", space)
    assert count == 4
    x0, codes = batches(torch.arange(count), torch.Generator())
    torch.testing.assert_close(x0, networks.pixels[[0, 1, 3, 4]].float() / 127.5 - 1, atol=1e-6, rtol=0)
    w_plus = artefacts.read(networks.paths.reals, "reals", ["w_plus"], {"split": "train"})["w_plus"].float()
    expected = w_plus.unflatten(1, (3, 4)).sum(dim=2) if space == "s" else w_plus
    torch.testing.assert_close(codes, expected, atol=2e-3, rtol=2e-3)


def test_most_limits_the_rows(networks):
    batches, count = denoiser_data.load(networks, "train", "s", most=3)
    x0, _ = batches(torch.arange(count), torch.Generator())
    assert count == 3 and x0.shape == (3, 3, 8, 8)


def test_a_saved_denoiser_loads_with_the_same_outputs_and_saves_to_the_same_bytes(tmp_path):
    torch.manual_seed(1)
    network = Denoiser(**NUMBERS).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter).mul(0.1).half())  # files hold float16
    path = tmp_path / "denoiser.safetensors"
    denoiser_training.save(path, network, note="x")
    again = denoiser_training.load(path)
    x, t, s = torch.randn(3, 3, 16, 16), torch.randint(0, 1000, (3,)), torch.randn(3, 5)
    assert torch.equal(again(x, t, s), network(x, t, s))
    assert not again.training and not any(p.requires_grad for p in again.parameters())
    assert weights.load(path)[1]["note"] == "x"
    denoiser_training.save(tmp_path / "again", again, note="x")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_loading_a_file_of_another_network_is_refused_in_one_line(tmp_path):
    path = tmp_path / "denoiser.safetensors"
    weights.save(path, {"a": torch.zeros(3)}, {"model": NUMBERS})
    with pytest.raises(InputError, match="does not hold a denoiser") as caught:
        denoiser_training.load(path, hint="run x")
    assert "\n" not in str(caught.value) and "run x" in str(caught.value)
    weights.save(path, {"a": torch.zeros(3)}, {})
    with pytest.raises(InputError, match="does not hold a denoiser"):
        denoiser_training.load(path)
