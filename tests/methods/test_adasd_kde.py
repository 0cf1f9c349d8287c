"""Version 2's posterior: the exact values of the notes, within what the grid costs, and the grid against the exact sum."""

import math
import random

import pytest

from draftwise.methods.adasd import AdaSDAccept, Judged
from draftwise.methods.adasd_kde import POINTS, Distances, bandwidth, mass, posterior, seen

ACCEPTED = [0.100197, 0.043579, 0.384729, 0.0, 0.078843]
REJECTED = [0.345714, 0.481504]
EMPTY = Distances(grid=(0.0,) * POINTS)
EXACT = {0.2: 0.872902, 0.25: 0.665531, 0.3: 0.479713, 0.5: 0.275644, 0.8: 0.469170, 0.9: 0.788603}


def exact_mass(distances: list[float], h: float, d: float) -> float:
    return sum(math.exp(-0.5 * ((d - x) / h) ** 2) for x in distances) / (h * math.sqrt(2 * math.pi))


def test_scotts_bandwidths() -> None:
    assert bandwidth(seen(EMPTY, ACCEPTED)) == pytest.approx(0.110155, abs=1e-6)
    assert bandwidth(seen(EMPTY, REJECTED)) == pytest.approx(0.083589, abs=1e-6)


@pytest.mark.parametrize(("d", "value"), EXACT.items())
def test_the_posterior(d: float, value: float) -> None:
    """The relative error of a mass is near (step / h)^2 / 8 |z^2 - 1| with z the distance in bandwidths: at d = 0.9, five bandwidths from
    the nearest rejected distance, 7e-3; the posterior keeps p (1 - p) of it."""
    assert posterior(seen(EMPTY, ACCEPTED), seen(EMPTY, REJECTED), d) == pytest.approx(value, abs=2e-3 if d > 0.6 else 2e-4)


def test_the_grid_against_the_exact_sum() -> None:
    draw = random.Random(0)
    distances = [draw.betavariate(2, 5) for _ in range(200)]
    found = seen(EMPTY, distances)
    h = bandwidth(found)
    for d in [i / 50 for i in range(50)]:
        assert mass(found, d) == pytest.approx(exact_mass(distances, h, d), rel=5e-3, abs=1e-3)


def test_the_figures_are_those_of_the_list() -> None:
    found = seen(seen(EMPTY, ACCEPTED[:2]), ACCEPTED[2:])
    assert (found.n, found.low, found.high) == (5, 0.0, 0.384729)
    assert found.total == pytest.approx(sum(ACCEPTED))
    assert found.squares == pytest.approx(sum(d * d for d in ACCEPTED))
    assert sum(found.grid) == pytest.approx(5)
    assert sum(i / (POINTS - 1) * share for i, share in enumerate(found.grid)) == pytest.approx(sum(ACCEPTED))


def test_the_ends_of_the_range() -> None:
    found = seen(EMPTY, [0.0, 1.0])
    assert (found.grid[0], found.grid[-1]) == (1.0, 1.0)
    assert posterior(seen(EMPTY, [0.0, 0.0]), seen(EMPTY, [1.0, 1.0]), 0.5) == 0.0  # no mass of either kind


def test_without_a_grid_only_the_moments_are_kept() -> None:
    assert seen(Distances(), [0.25, 0.5]) == Distances(2, 0.75, 0.3125, 0.25, 0.5)


@pytest.mark.parametrize(("d", "accepted"), [(0.2, True), (0.25, True), (0.3, False), (0.5, False), (0.9, False)])
def test_the_guard_refuses_what_is_farther_than_the_rejected(d: float, accepted: bool) -> None:
    """At d = 0.9 the posterior alone says accept."""
    rule = AdaSDAccept(version=2)
    assert rule._near(Judged(seen(EMPTY, ACCEPTED), seen(EMPTY, REJECTED)))(d) is accepted
