"""Times of passes and steps: what is believed of them where they are few or disturbed."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftwise.timings import Steps, Timings


def test_one_disturbed_pass_is_hardly_believed() -> None:
    """Passes cost 40 and 2 more for each row; the only one over 8 rows took twice as long."""
    timings = Timings()
    for rows in (1, 2, 3, 5):
        for _ in range(4):
            timings.add(rows, 40 + 2 * rows)
    timings.add(8, 112)
    assert dict(timings.curve) == {1: 42, 2: 44, 3: 46, 5: 50, 8: pytest.approx(0.25 * 112 + 0.75 * 56)}
    for _ in range(3):
        timings.add(8, 112)
    assert dict(timings.curve)[8] == 112  # it does take so long
    for _ in range(4):
        timings.add(5, 100)
    assert dict(timings.curve)[5] == 50  # half of its times
    timings.add(5, 100)
    assert dict(timings.curve)[5] == 100
    timings.add(3, 500)
    for _ in range(4):
        timings.add(3, 500)
    assert dict(timings.curve)[3] == 3 * 42  # three passes over one would do


def test_what_was_slow_long_ago_is_forgotten() -> None:
    """All passes of a busy start took twenty times as long; since then nothing but passes over one row."""
    timings = Timings()
    for rows in (1, 1, 1, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3):
        timings.add(rows, 20 * (40 + rows))
    for _ in range(127):
        assert {rows for rows, _ in timings.curve} == {1, 2, 3}
        timings.add(1, 41)
    assert timings.curve == ((1, 41), (3, 3 * 41))
    timings.add(1, 41)
    assert timings.curve == ((1, 41),)
    for _ in range(200):
        timings.add(2, 42)
    assert timings.curve == ((1, 41), (2, 42))  # the smallest stays


def test_few_widths_are_believed_as_they_are() -> None:
    timings = Timings()
    assert timings.curve == ()
    timings.add(4, 7.0)
    timings.add(1, 5.0)
    assert timings.curve == ((1, 5.0), (4, 7.0))


@given(st.lists(st.tuples(st.integers(1, 200), st.floats(0, 1e3)), max_size=80))
def test_any_times(times: list[tuple[int, float]]) -> None:
    timings = Timings()
    for rows, seconds in times:
        timings.add(rows, seconds)
    assert len(timings.curve) == min(64, len({rows for rows, _ in times}))
    assert [rows for rows, _ in timings.curve] == sorted(rows for rows, _ in timings.curve)
    assert all(0 <= seconds < math.inf for _, seconds in timings.curve)


def test_steps() -> None:
    steps = Steps()
    assert math.isnan(steps.usual)
    steps.add(0, 5.0)
    assert math.isnan(steps.usual)
    for seconds in (2.0, 2.2, 40.0):
        steps.add(4, seconds)
    assert steps.usual == pytest.approx(0.55)
