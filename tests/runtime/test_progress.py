"""Progress shows amount, rate and time left; piped output stays short and readable."""

import io

import pytest

from pipeline.runtime import progress


class Clock:
    """A clock that the test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def lines(count: int, seconds: float, **options) -> list[str]:
    stream, clock = io.StringIO(), Clock()
    for _ in progress.track(range(count), stream=stream, clock=clock, **options):
        clock.now += seconds
    return stream.getvalue().splitlines()


def test_piped_output_is_a_line_every_ten_seconds_and_one_at_the_end():
    assert lines(25, 1.0, label="codes", unit="images", step=8, total=200) == [
        "codes: 80 of 200 images, 8/s, 0:15 left",
        "codes: 160 of 200 images, 8/s, 0:05 left",
        "codes: 200 of 200 images, 8/s, 0:25 in all",
    ]


def test_a_resumed_run_counts_what_was_done_but_not_in_its_rate():
    assert lines(5, 2.0, label="codes", total=100, done=95) == ["codes: 100 of 100, 0.5/s, 0:10 in all"]


def test_items_of_different_sizes_count_by_their_own():
    assert lines(4, 6.0, label="codes", total=18, step=lambda item: 6 if item < 2 else 3) == [
        "codes: 12 of 18, 1/s, 0:06 left",
        "codes: 18 of 18, 0.75/s, 0:24 in all",
    ]


def test_an_unknown_total_counts_up():
    stream, clock = io.StringIO(), Clock()

    def items():
        for _ in range(12):
            clock.now += 1
            yield 1

    assert sum(progress.track(items(), label="read", stream=stream, clock=clock)) == 12
    assert stream.getvalue().splitlines()[-1] == "read: 12 of 12, 1/s, 0:12 in all"


def test_short_work_prints_nothing_when_piped():
    assert lines(10, 0.05, label="codes") == []


def test_a_terminal_gets_a_bar():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    assert list(progress.track([1, 2, 3], label="codes", stream=stream)) == [1, 2, 3]
    assert "codes" in stream.getvalue() and "3 of 3" in stream.getvalue()


def test_an_error_inside_passes_through():
    with pytest.raises(KeyError):
        for _ in progress.track([1, 2], label="codes", stream=io.StringIO()):
            raise KeyError


@pytest.mark.parametrize(("seconds", "text"), [(7.4, "0:07"), (754, "12:34"), (3723, "1:02:03"), (0, "0:00")])
def test_durations_read_like_a_clock(seconds, text):
    assert progress.duration(seconds) == text
