"""Every solver against its formula written by hand, diffusers' own pipeline and exact solutions."""

import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from diffusers.pipelines.ddim.pipeline_ddim import DDIMPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from pipeline.models import ode_solvers
from pipeline.models.ode_solvers import (
    Sampled,
    Trajectory,
    add_noise,
    check_steps,
    schedulers,
    standardise,
    time_at_noise_ratio,
)
from pipeline.runtime.errors import InputError

ABAR = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), dim=0)


def up(network, x0, s, steps, objective="eps"):
    return ode_solvers.encode(network, x0, s, trajectory(steps, objective), objective)


def down(network, noise, s, steps, objective="eps"):
    return ode_solvers.decode(network, Sampled(noise, 0), s, trajectory(steps, objective), objective)


def trajectory(steps, objective):
    return Trajectory(steps, "midpoint" if objective == "flow" else "ddim")


def levels(steps: int) -> list[tuple[int, float]]:
    """(timestep, abar) from clean to noise: every 1000/steps-th, the first one included."""
    return [(t, ABAR[t].item()) for t in range(0, 1000, 1000 // steps)]


def move(x, eps, a, b):
    """One DDIM step between levels abar = a and b."""
    return math.sqrt(b) * (x - math.sqrt(1 - a) * eps) / math.sqrt(a) + math.sqrt(1 - b) * eps


def gaussian(spread=(0.2, 0.7)):
    """The exact denoiser of images whose pixels are independent: mean s, standard deviations rising along the row."""
    sigma = torch.linspace(*spread, 4, dtype=torch.float64)

    def eps(x, t, s):
        a = ABAR.to(x.device)[t].view(-1, 1, 1, 1)
        offset = x.double() - a.sqrt() * s.double().view(-1, 1, 1, 1)
        return ((1 - a).sqrt() * offset / (a * sigma**2 + 1 - a)).float()

    return eps, sigma


def samples(sigma, batch=16):
    torch.manual_seed(0)
    s = torch.randn(batch, 1) / 2
    return (s.view(-1, 1, 1, 1) + sigma * torch.randn(batch, 3, 4, 4)).float(), s


@pytest.mark.parametrize("steps", [1, 4, 20])
def test_both_directions_follow_the_ddim_formula(steps):
    eps, sigma = gaussian()
    x0, s = samples(sigma)
    state, a = x0.double(), 1.0
    for t, b in levels(steps):
        noise = eps(state.float(), torch.full((len(x0),), t), s).double()  # asked at the level it goes to
        state, a = move(state, noise, a, b), b
    encoded = up(eps, x0, s, steps)
    assert encoded.evaluations == steps
    torch.testing.assert_close(encoded.x.double(), state, rtol=1e-4, atol=1e-4)
    state = encoded.x.double()
    below = [1.0, *(b for _, b in levels(steps))]
    for (t, a), b in zip(reversed(levels(steps)), reversed(below[:-1]), strict=True):
        state = move(state, eps(state.float(), torch.full((len(x0),), t), s).double(), a, b)
    decoded = down(eps, encoded.x, s, steps)
    assert decoded.evaluations == steps
    torch.testing.assert_close(decoded.x.double(), state, rtol=1e-4, atol=1e-4)


def test_decoding_equals_the_ddim_pipeline_of_diffusers():
    eps, sigma = gaussian()
    _, s = samples(sigma, 2)

    class Unconditional(torch.nn.Module):
        config = SimpleNamespace(sample_size=4, in_channels=3)
        dtype, device = torch.float32, torch.device("cpu")

        def forward(self, x, t):
            return SimpleNamespace(sample=eps(x, t.expand(len(x)), s))

    scheduler = DDIMScheduler(beta_schedule="linear", clip_sample=False)
    pipeline = DDIMPipeline(Unconditional(), scheduler)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(2, torch.Generator().manual_seed(3), num_inference_steps=5, output_type="np").images
    x_t = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    mine = (down(eps, x_t, s, 5).x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert abs(mine - theirs).max() < 1e-6
    assert 0.05 < theirs.std() < 0.45  # neither grey nor saturated


def test_the_noise_schedule_is_ddpms():
    for scheduler in schedulers():
        torch.testing.assert_close(scheduler.alphas_cumprod.double(), ABAR, rtol=1e-4, atol=0)
        assert not scheduler.config.clip_sample
    assert [round(ABAR[t].item(), 4) for t in (100, 300, 500, 800)] == [0.8951, 0.394, 0.0778, 0.0015]


def test_the_error_of_a_round_trip_falls_with_more_steps():
    eps, sigma = gaussian()
    x0, s = samples(sigma)
    errors = [(down(eps, up(eps, x0, s, n).x, s, n).x - x0).square().mean().item() for n in (10, 20, 50, 100)]
    assert all(more < 0.6 * less for less, more in pairwise(errors)), errors
    assert errors[-1] < 1e-3


def test_a_velocity_network_gives_the_states_of_the_equivalent_noise_network():
    eps, sigma = gaussian()
    x0, s = samples(sigma)

    def velocity(x, t, s):
        a, noise = ABAR[t].view(-1, 1, 1, 1), eps(x, t, s).double()
        return (a.sqrt() * noise - (1 - a).sqrt() * (x - (1 - a).sqrt() * noise) / a.sqrt()).float()

    noise = up(eps, x0, s, 20).x
    torch.testing.assert_close(up(velocity, x0, s, 20, "v").x, noise, rtol=1e-3, atol=1e-3)
    again = down(velocity, noise, s, 20, "v").x
    torch.testing.assert_close(again, down(eps, noise, s, 20).x, rtol=1e-3, atol=1e-3)


# ---------------------------------------------------------------- rectified flow


def straight(sigma):
    """The exact velocity of a rectified flow to images whose pixels are independent, as in `gaussian`."""

    def velocity(x, t, s):
        t, mean = (t.double() / 1000).view(-1, 1, 1, 1), s.double().view(-1, 1, 1, 1)
        factor = (t - (1 - t) * sigma**2) / ((1 - t) ** 2 * sigma**2 + t**2)
        return (factor * (x.double() - (1 - t) * mean) - mean).float()

    return velocity


def test_midpoint_is_of_second_order_both_ways_at_two_evaluations_per_step():
    _, sigma = gaussian()
    x0, s = samples(sigma)
    exact = (x0 - s.view(-1, 1, 1, 1)) / sigma  # the flow keeps the order of pixel values
    there, back = [], []
    for steps in (10, 20, 40):
        noise = up(straight(sigma), x0, s, steps, objective="flow")
        image = down(straight(sigma), exact.float(), s, steps, objective="flow")
        assert noise.evaluations == image.evaluations == 2 * steps
        there.append((noise.x - exact).square().mean().sqrt().item())
        back.append((image.x - x0).square().mean().sqrt().item())
    for errors in (there, back):
        assert all(less > 3 * more for less, more in pairwise(errors)), errors
        assert errors[-1] < 5e-3


def test_encoding_converges_to_the_exact_noise():
    eps, sigma = gaussian()
    x0, s = samples(sigma)
    quantile = (x0 - s.view(-1, 1, 1, 1)) / sigma  # each pixel keeps its own all the way
    errors = []
    for steps in (20, 100, 1000):
        _, last = levels(steps)[-1]
        exact = quantile * (last * sigma**2 + 1 - last).sqrt() + math.sqrt(last) * s.view(-1, 1, 1, 1)
        errors.append((up(eps, x0, s, steps).x - exact).square().mean().item())
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-3


def test_decoding_with_a_moved_style_moves_the_image_by_as_much():
    eps, sigma = gaussian()
    x0, s = samples(sigma)
    x_t = up(eps, x0, s, 100).x
    moved = down(eps, x_t, s + 0.5, 100).x - down(eps, x_t, s, 100).x
    torch.testing.assert_close(moved, torch.full_like(moved, 0.5), rtol=0, atol=0.01)


def test_results_are_deterministic_and_independent_of_the_batch():
    eps, sigma = gaussian()
    x0, s = samples(sigma, 5)
    together = down(eps, up(eps, x0, s, 10).x, s, 10).x
    assert torch.equal(together, down(eps, up(eps, x0, s, 10).x, s, 10).x)
    alone = [down(eps, up(eps, x0[i : i + 1], s[i : i + 1], 10).x, s[i : i + 1], 10).x for i in range(5)]
    torch.testing.assert_close(torch.cat(alone), together)


def test_the_two_directions_may_use_different_steps():
    eps, sigma = gaussian()
    x0, s = samples(sigma)
    both = down(eps, up(eps, x0, s, 20).x, s, 20).x
    finer = down(eps, up(eps, x0, s, 250).x, s, 250).x
    assert (finer - x0).square().mean() < (both - x0).square().mean()
    fewer = down(eps, up(eps, x0, s, 250).x, s, 20).x  # DiffAE's habit
    assert (fewer - x0).square().mean() < 0.1 * x0.square().mean()


def test_images_are_float32_also_with_a_half_precision_network():
    eps, sigma = gaussian()
    x0, s = samples(sigma)
    assert down(lambda *given: eps(*given).bfloat16(), x0, s, 10).x.dtype == torch.float32


@pytest.mark.parametrize(("steps", "use"), [(0, "1"), (-1, "1"), (3, "2 or 4"), (64, "50 or 100"), (2000, "1000")])
def test_steps_that_do_not_divide_a_thousand_are_refused_with_the_nearest_that_do(steps, use):
    with pytest.raises(InputError, match=f"{steps} sampling steps do not divide 1000: use {use}"):
        up(gaussian()[0], torch.zeros(1, 3, 4, 4), torch.zeros(1, 1), steps)


@pytest.mark.parametrize("steps", [1, 8, 20, 40, 50, 100, 125, 250, 1000])
def test_both_directions_visit_the_same_levels(steps):
    check_steps(steps)
    for scheduler in schedulers():
        scheduler.set_timesteps(steps)
    descent, ascent = (scheduler.timesteps.tolist() for scheduler in schedulers())
    assert ascent == descent[::-1] == [t for t, _ in levels(steps)]


# ---------------------------------------------------------------- other solvers, partial trajectories


def test_heun_is_of_second_order_as_the_midpoint_rule_is():
    _, sigma = gaussian()
    x0, s = samples(sigma)
    exact = (x0 - s.view(-1, 1, 1, 1)) / sigma
    errors = []
    for steps in (10, 20, 40):
        noise = ode_solvers.encode(straight(sigma), x0, s, Trajectory(steps, "heun"), "flow")
        assert noise.evaluations == 2 * steps
        errors.append((noise.x - exact).square().mean().sqrt().item())
    assert all(less > 3 * more for less, more in pairwise(errors)), errors


@pytest.mark.parametrize("steps", [2, 10, 20])
def test_belm_follows_its_formula_and_is_inverted_exactly(steps):
    eps, sigma = gaussian()
    x0, s = samples(sigma)
    noise = ode_solvers.encode(eps, x0, s, Trajectory(steps, "belm"), "eps", keep=True)
    path = [state.double() for state in noise.path]
    assert len(path) == steps + 1 and noise.evaluations == steps
    times = [None, *range(1000 // steps - 1, 1000, 1000 // steps)]
    signal = [1.0 if t is None else math.sqrt(ABAR[t]) for t in times]
    ratio = [0.0 if t is None else math.sqrt(1 / ABAR[t] - 1) for t in times]
    for i in range(1, steps):  # equation 17 of the paper, from two levels to the one below
        h, wider = ratio[i] - ratio[i - 1], ratio[i + 1] - ratio[i]
        said = eps(path[i].float(), torch.full((len(x0),), times[i]), s).double()
        below = (
            h**2 / wider**2 * signal[i - 1] / signal[i + 1] * path[i + 1]
            + (wider**2 - h**2) / wider**2 * signal[i - 1] / signal[i] * path[i]
            - h * (h + wider) / wider * signal[i - 1] * said
        )
        torch.testing.assert_close(below, path[i - 1], rtol=1e-3, atol=1e-3)
    again = ode_solvers.decode(eps, noise, s, Trajectory(steps, "belm"), "eps")
    assert again.evaluations == steps - 1
    torch.testing.assert_close(again.x, x0, rtol=0, atol=1e-4)


def test_belm_decodes_pure_noise_and_converges_with_more_steps():
    eps, sigma = gaussian()
    x0, s = samples(sigma)
    quantile = (x0 - s.view(-1, 1, 1, 1)) / sigma
    last = ABAR[999]
    top = quantile * (last * sigma**2 + 1 - last).sqrt() + last.sqrt() * s.view(-1, 1, 1, 1)
    errors = []
    for steps in (20, 50, 100):
        found = ode_solvers.decode(eps, Sampled(top.float(), 0), s, Trajectory(steps, "belm"), "eps")
        assert found.evaluations == steps
        errors.append((found.x - x0).square().mean().item())
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-3, errors


@pytest.mark.parametrize("solver", ["ddim", "belm"])
def test_a_flow_network_gives_the_states_of_the_equivalent_noise_network(solver):
    eps, sigma = gaussian()
    x0, s = samples(sigma)
    states = ode_solvers.encode(straight(sigma), x0, s, Trajectory(20, solver), "flow")
    expected = ode_solvers.encode(eps, x0, s, Trajectory(20, solver), "eps")
    torch.testing.assert_close(states.x, expected.x, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize(
    ("solver", "objective"), [("ddim", "eps"), ("belm", "eps"), ("midpoint", "flow"), ("heun", "flow")]
)
def test_a_partial_trajectory_costs_its_part_and_is_inverted(solver, objective):
    eps, sigma = gaussian()
    x0, s = samples(sigma)
    network = straight(sigma) if objective == "flow" else eps
    whole, part = Trajectory(20, solver), Trajectory(20, solver, ratio=0.4)
    far = ode_solvers.encode(network, x0, s, whole, objective, keep=True)
    near = ode_solvers.encode(network, x0, s, part, objective, keep=True)
    assert near.evaluations * 5 == far.evaluations * 2 and len(near.path) == 9
    assert all(torch.equal(one, other) for one, other in zip(near.path, far.path, strict=False))
    again = ode_solvers.decode(network, near, s, part, objective)
    assert (again.x - x0).square().mean() < 0.05 * x0.square().mean()
    assert (near.x - x0).square().mean() < (far.x - x0).square().mean()


def test_an_override_replaces_every_state_in_decoding():
    eps, sigma = gaussian()
    x0, s = samples(sigma)
    noise, seen = ode_solvers.encode(eps, x0, s, Trajectory(10, "ddim"), "eps", keep=True), []

    def override(number, x):
        seen.append(number)
        return noise.path[number]

    assert torch.equal(ode_solvers.decode(eps, noise, s + 9, Trajectory(10, "ddim"), "eps", override).x, x0)
    assert seen == list(range(9, -1, -1))


def test_impossible_settings_are_refused_in_one_line():
    for words, wrong in {
        "solver is 'euler'": {"solver": "euler"},
        "ratio is 0": {"ratio": 0.0},
        "belm needs two steps or more": {"solver": "belm", "ratio": 0.1},
        "do not divide 1000": {"steps": 7},
    }.items():
        with pytest.raises(InputError, match=words):
            Trajectory(**{"steps": 10, "solver": "ddim", **wrong})
    with pytest.raises(InputError, match="midpoint needs a rectified flow, this denoiser predicts eps: use"):
        ode_solvers.encode(gaussian()[0], torch.zeros(1, 3, 4, 4), torch.zeros(1, 1), Trajectory(4, "midpoint"), "eps")


@pytest.mark.parametrize(("solver", "objective"), [("ddim", "eps"), ("belm", "eps"), ("midpoint", "flow")])
def test_the_signal_level_is_the_factor_of_the_image_in_a_state(solver, objective):
    """A picture that all noise is known of: what is added to it, times the signal, is what its states gain."""
    path, x0, more = Trajectory(10, solver), torch.randn(2, 3, 4, 4), torch.full((2, 3, 4, 4), 0.3)
    known = torch.randn(2, 3, 4, 4)
    states = []
    for picture in (x0, x0 + more):
        network = (lambda x, t, s: known) if objective == "eps" else (lambda x, t, s, p=picture: known - p)
        states.append(ode_solvers.encode(network, picture, torch.zeros(2, 1), path, objective, keep=True).path)
    for number, (plain, moved) in enumerate(zip(*states, strict=True)):
        torch.testing.assert_close(moved - plain, ode_solvers.signal_level(number, path) * more, rtol=1e-3, atol=1e-3)


# ---------------------------------------------------------------- stochastic sampling


def test_renoising_samples_images_of_the_given_style():
    eps, sigma = gaussian()
    x0, s = samples(sigma, 4)
    found = [ode_solvers.renoise_and_sample(eps, x0, s + 1, Trajectory(100, "ddim"), "eps", seed) for seed in range(20)]
    assert found[3].evaluations == 100
    residue = torch.stack([(drawn.x - (s + 1).view(-1, 1, 1, 1)) / sigma for drawn in found])
    assert abs(residue.mean()) < 0.1 and abs(residue.square().mean() - 1) < 0.2
    near = ode_solvers.renoise_and_sample(eps, x0, s, Trajectory(100, "ddim", ratio=0.1), "eps", seed=3)
    assert near.evaluations == 10 and (near.x - x0).square().mean() < 0.3 * (found[3].x - x0).square().mean()


def test_the_noise_of_renoising_depends_on_the_seed_alone():
    eps, sigma = gaussian()
    x0, s = samples(sigma, 4)
    half = Trajectory(10, "ddim", ratio=0.5)
    together = ode_solvers.renoise_and_sample(eps, x0, s, half, "eps", seed=1).x
    alone = ode_solvers.renoise_and_sample(eps, x0[2:3], s[2:3], half, "eps", seed=1).x
    torch.testing.assert_close(alone, together[2:3])
    assert not torch.equal(together, ode_solvers.renoise_and_sample(eps, x0, s, half, "eps", seed=2).x)


@pytest.mark.parametrize("objective", ["eps", "flow"])
@pytest.mark.parametrize("ratio", [0.3, 1.6])
def test_the_time_at_a_noise_ratio_has_that_ratio_of_noise_to_signal(objective, ratio):
    t = torch.tensor([time_at_noise_ratio(ratio, objective)])
    signal = add_noise(torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), t, objective).item()
    noise = add_noise(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1), t, objective).item()
    assert noise / signal == pytest.approx(ratio, rel=0.02)


def test_standardised_codes_have_unit_scale_and_constant_channels_stay_small():
    s = torch.randn(4000, 3) * torch.tensor([5.0, 0.2, 1e-7]) + 1
    out = standardise(s, s.mean(dim=0), s.std(dim=0))
    torch.testing.assert_close(out.std(dim=0)[:2], torch.ones(2), rtol=1e-3, atol=0)
    assert out[:, 2].abs().max() < 1e-3
