"""The training loop: what a step may depend on, what is saved and when, and that a killed run loses nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline import training
from pipeline.training import Curve, Ema, batch_rows, fit, generator_for, load_state, save_state


class Counter:
    """The smallest thing with a state: the steps it took, and the sum of what each drew."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.total = 0.0

    def step(self, number: int) -> training.Metrics:
        self.steps.append(number)
        drawn = torch.rand(1, generator=generator_for(5, number)).item()
        self.total += drawn
        return {"drawn": drawn, "number": float(number)}

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total}

    def load_state_dict(self, state: Any) -> None:
        self.total = state["total"]


def clock(monkeypatch: pytest.MonkeyPatch, seconds_per_look: float) -> None:
    """A clock that goes on by so much whenever it is looked at."""
    times = iter(seconds_per_look * i for i in range(10_000))
    monkeypatch.setattr(training.time, "monotonic", lambda: next(times))


def kill_at(number: int, step: Callable[[int], training.Metrics]) -> Callable[[int], training.Metrics]:
    def killed(current: int) -> training.Metrics:
        if current == number:
            raise KeyboardInterrupt
        return step(current)

    return killed


# ---------------------------------------------------------------- randomness


def test_the_randomness_of_a_step_is_a_function_of_seed_and_step() -> None:
    draws = {
        (seed, step): torch.rand(4, generator=generator_for(seed, step)) for seed in range(5) for step in range(-1, 20)
    }
    for (seed, step), drawn in draws.items():
        assert torch.equal(torch.rand(4, generator=generator_for(seed, step)), drawn)
    assert len({tuple(drawn.tolist()) for drawn in draws.values()}) == len(draws)


def test_batches_are_rows_of_the_data() -> None:
    rows = batch_rows(7, 500, generator_for(0, 0))
    assert rows.shape == (500,) and set(rows.tolist()) == set(range(7))


# ---------------------------------------------------------------- the average


def test_the_average_follows_parameters_by_its_decay_and_copies_buffers() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    ema = Ema(net)
    expected = [p.detach().clone() for p in net.parameters()]
    for decay in (0.9, 0.5, 0.0):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(torch.randn_like(parameter))
        net(torch.randn(8, 3))  # moves the running statistics
        expected = [
            decay * old + (1 - decay) * new.detach() for old, new in zip(expected, net.parameters(), strict=True)
        ]
        ema.update(net, decay)
        for average, value in zip(ema.module.parameters(), expected, strict=True):
            torch.testing.assert_close(average, value)
        for average, value in zip(ema.module.buffers(), net.buffers(), strict=True):
            assert torch.equal(average, value)


def test_the_average_is_a_copy_in_evaluation_mode_that_takes_no_gradients() -> None:
    net = nn.Linear(2, 2)
    ema = Ema(net)
    assert not ema.module.training and net.training
    assert not any(parameter.requires_grad for parameter in ema.module.parameters())
    assert all(parameter.requires_grad for parameter in net.parameters())
    before = ema.module.weight.clone()  # type: ignore[operator, union-attr]
    nn.init.zeros_(net.weight)
    assert torch.equal(ema.module.weight, before)  # type: ignore[arg-type]
    other = Ema(nn.Linear(2, 2))
    other.load_state_dict(ema.state_dict())
    assert torch.equal(other.module.weight, before)  # type: ignore[arg-type]


# ---------------------------------------------------------------- the loop


def test_steps_are_numbered_from_zero_and_counted_when_finished() -> None:
    counter = Counter()
    yielded = list(fit(counter.step, {"counter": counter}, 4))
    assert counter.steps == [0, 1, 2, 3]
    assert [done for done, _ in yielded] == [1, 2, 3, 4]
    assert [metrics["number"] for _, metrics in yielded] == [0, 1, 2, 3]


def test_the_state_is_saved_every_so_often_and_at_the_end(tmp_path: Path) -> None:
    counter, path, saved = Counter(), tmp_path / "deep" / "state.pt", []
    for _ in fit(counter.step, {"counter": counter}, 7, path, every=3):
        saved.append(torch.load(path)["step"] if path.exists() else None)
    assert saved == [None, None, 3, 3, 3, 6, 7]
    assert [file.name for file in path.parent.iterdir()] == ["state.pt"]


@pytest.mark.parametrize("killed", [1, 2, 3, 5, 6])
def test_a_run_killed_inside_a_step_ends_like_an_undisturbed_one(tmp_path: Path, killed: int) -> None:
    undisturbed, curve = Counter(), Curve(every=2)
    list(fit(undisturbed.step, {"counter": undisturbed}, 7, curve=curve))
    path = tmp_path / "state.pt"
    first = Counter()
    with pytest.raises(KeyboardInterrupt):
        list(fit(kill_at(killed, first.step), {"counter": first}, 7, path, every=2, curve=Curve(every=2)))
    second, again = Counter(), Curve(every=2)
    yielded = list(fit(second.step, {"counter": second}, 7, path, every=2, curve=again))
    assert second.steps == list(range(killed - killed % 2, 7)) and yielded[-1][0] == 7
    assert second.total == undisturbed.total
    assert again.rows == curve.rows


def test_a_finished_run_says_so_once_and_takes_no_step(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    list(fit(Counter().step, {"counter": Counter()}, 3, path))
    again = Counter()
    assert list(fit(again.step, {"counter": again}, 3, path)) == [(3, {})]
    assert again.steps == []
    assert list(fit(again.step, {"counter": again}, 2, path)) == [(3, {})]  # asked for less than it has
    assert list(fit(again.step, {"counter": again}, 0)) == [(0, {})]


def test_a_run_out_of_time_stops_saved_and_goes_on_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, counter = tmp_path / "state.pt", Counter()
    clock(monkeypatch, 1.0)
    yielded = list(fit(counter.step, {"counter": counter}, 50, path, every=20, seconds=4.5))
    assert [done for done, _ in yielded] == [1, 2, 3, 4, 5]
    assert torch.load(path)["step"] == 5
    later = Counter()
    assert [done for done, _ in fit(later.step, {"counter": later}, 7, path, every=20)] == [6, 7]
    undisturbed = Counter()
    list(fit(undisturbed.step, {"counter": undisturbed}, 7))
    assert later.total == undisturbed.total


def test_however_little_time_there_is_one_step_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock(monkeypatch, 1.0)
    path = tmp_path / "state.pt"
    for expected in (1, 2, 3):
        assert [done for done, _ in fit(Counter().step, {"counter": Counter()}, 9, path, seconds=0)] == [expected]


# ---------------------------------------------------------------- states and curves


class Unwritable(Counter):
    def state_dict(self) -> dict[str, Any]:
        raise OSError("no space left")


def test_a_state_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    counter = Counter()
    counter.step(0)
    save_state(path, 1, {"counter": counter})
    before = path.read_bytes()
    with pytest.raises(OSError, match="no space left"):
        save_state(path, 2, {"counter": Unwritable()})
    assert path.read_bytes() == before
    restored = Counter()
    assert load_state(path, {"counter": restored}) == 1 and restored.total == counter.total
    assert load_state(tmp_path / "none.pt", {"counter": restored}) == 0


def test_a_state_restores_a_network_and_its_optimiser_to_the_byte(tmp_path: Path) -> None:
    def parts() -> dict[str, Any]:
        torch.manual_seed(0)
        net = nn.Linear(3, 2)
        return {"net": net, "adam": torch.optim.Adam(net.parameters(), lr=0.1)}

    def step(parts: dict[str, Any], number: int) -> None:
        parts["net"](torch.randn(4, 3, generator=generator_for(0, number))).square().sum().backward()
        parts["adam"].step()
        parts["adam"].zero_grad()

    whole, first, second = parts(), parts(), parts()
    for number in range(4):
        step(whole, number)
    for number in range(2):
        step(first, number)
    save_state(tmp_path / "state.pt", 2, first)
    for number in range(load_state(tmp_path / "state.pt", second), 4):
        step(second, number)
    assert torch.equal(second["net"].weight, whole["net"].weight)


def test_a_curve_has_the_means_of_every_so_many_steps_and_a_state_in_between() -> None:
    curve = Curve(every=3)
    for done in range(1, 6):
        curve.add(done, {"loss": float(done)})
    assert curve.rows == [{"step": 3, "loss": 2.0}]
    resumed = Curve(every=3)
    resumed.load_state_dict(curve.state_dict())
    for done in (6, 7):
        resumed.add(done, {"loss": float(done)})
    assert resumed.rows == [{"step": 3, "loss": 2.0}, {"step": 6, "loss": 5.0}]
    assert curve.rows == [{"step": 3, "loss": 2.0}]
