"""The latency forms of HSD on their reference values, and the planner against brute force."""

from __future__ import annotations

import itertools
import random

import pytest

from draftwise.methods.hsd import Hierarchy, fluid, gain, kept, rounds, select_hierarchy, shortlist, truncated

CHAINS = [
    ((1, 4, 20), (0.8, 0.8), (3, 6), 8.6621, 9.4752, 8.9059),
    ((1, 3, 8, 30), (0.85, 0.85, 0.85), (3, 6, 12), 13.8422, 17.0470, 15.7337),
    ((1, 5, 40), (0.7, 0.9), (2, 8), 10.7040, 11.1092, 10.6029),
    ((1, 2, 10, 50), (0.9, 0.8, 0.85), (4, 5, 8), 17.0950, 19.5114, 17.8217),
]
TOY = (1, 3, 9, 30)
ALPHA = [[0, 0.75, 0.65, 0.6], [0, 0, 0.8, 0.75], [0, 0, 0, 0.9], [0, 0, 0, 0]]


def test_the_pieces() -> None:
    assert gain(0.8, 3) == pytest.approx(2.952)
    assert gain(0.6, 3) == pytest.approx(2.176)
    assert gain(1.0, 3) == 4
    assert rounds(6, 0.8, 3) == pytest.approx(2.49152)
    assert rounds(8, 0.65, 3) == pytest.approx(3.815938, abs=1e-6)


@pytest.mark.parametrize(("costs", "alphas", "buffers", "a", "b", "c"), CHAINS)
def test_the_reference_chains(costs, alphas, buffers, a: float, b: float, c: float) -> None:
    assert fluid(costs, alphas, buffers) == pytest.approx(a, abs=5e-5)
    assert truncated(costs, alphas, buffers) == pytest.approx(b, abs=5e-5)
    assert kept(costs, alphas, buffers) == pytest.approx(c, abs=5e-5)


@pytest.mark.parametrize("n", [1, 4, 9])
def test_one_edge_is_the_same_in_all_forms(n: int) -> None:
    chain = (1.0, 10.0), (0.7,), (n,)
    assert fluid(*chain) == pytest.approx(truncated(*chain)) == pytest.approx(kept(*chain))
    assert kept(*chain) == pytest.approx((n * 1.0 + 10.0) / gain(0.7, n))


def test_the_reference_selection() -> None:
    found = select_hierarchy(TOY, ALPHA, 8)
    assert (found.models, found.buffers) == ((0, 2, 3), (3, 8))
    assert found.latency == pytest.approx(12.3725, abs=5e-5)
    single = min((3 * n + 30) / gain(0.75, n) for n in range(1, 9))
    assert single == pytest.approx(13.6858, abs=5e-5)
    scored = [kept((1, 9, 30), (0.65, 0.9), (3, t)) for t in (8, 7, 6)]
    assert scored == pytest.approx([11.7018, 11.6150, 11.6018], abs=5e-5)
    best = shortlist(TOY, ALPHA, 8)[0]
    assert best == Hierarchy((0, 2, 3), (3, 6), pytest.approx(11.6018, abs=5e-5))


@pytest.mark.parametrize("seed", range(8))
def test_the_planner_finds_what_brute_force_finds(seed: int) -> None:
    draw = random.Random(seed)
    costs = sorted(draw.uniform(0.5, 40) for _ in range(4))
    alpha = [[draw.uniform(0.2, 0.95) for _ in range(4)] for _ in range(4)]
    found = select_hierarchy(costs, alpha, 5)
    every = [costs[-1]]
    for n in (1, 2, 3):
        for chain in itertools.combinations(range(3), n):
            models = (*chain, 3)
            alphas = [alpha[i][j] for i, j in itertools.pairwise(models)]
            every += [truncated([costs[m] for m in models], alphas, t) for t in itertools.product(range(1, 6), repeat=n)]
    assert found.latency == pytest.approx(min(every))
    if len(found.models) > 1:
        alphas = [alpha[i][j] for i, j in itertools.pairwise(found.models)]
        assert truncated([costs[m] for m in found.models], alphas, found.buffers) == pytest.approx(found.latency)


@pytest.mark.parametrize("seed", range(3))
def test_the_short_list_is_best_under_the_exact_form(seed: int) -> None:
    draw = random.Random(100 + seed)
    costs = sorted(draw.uniform(0.5, 40) for _ in range(3))
    alpha = [[draw.uniform(0.4, 0.95) for _ in range(3)] for _ in range(3)]
    every = [costs[-1]]
    for chain in ((0,), (1,), (0, 1)):
        models = (*chain, 2)
        alphas = [alpha[i][j] for i, j in itertools.pairwise(models)]
        every += [kept([costs[m] for m in models], alphas, t) for t in itertools.product(range(1, 7), repeat=len(chain))]
    assert shortlist(costs, alpha, 6)[0].latency <= min(every) * 1.01  # single steps may end in a hollow beside the deepest


def test_a_simulation_agrees_with_the_exact_form() -> None:
    draw = random.Random(0)

    def verify(n: int, a: float) -> int:
        k = 0
        while k < n and draw.random() < a:
            k += 1
        return k + 1

    costs, alphas, buffers = (1, 4, 20), (0.8, 0.8), (3, 6)
    tokens = spent = 0.0
    for _ in range(20000):
        held = 0
        while held < buffers[1]:
            held += verify(buffers[0], alphas[0])
            spent += buffers[0] * costs[0] + costs[1]
        tokens += verify(held, alphas[1])
        spent += costs[2]
    assert spent / tokens == pytest.approx(kept(costs, alphas, buffers), rel=0.01)


def test_useless_helpers_leave_the_target_alone() -> None:
    assert select_hierarchy((9.0, 10.0), [[0, 0.1], [0, 0]], 4) == Hierarchy((1,), (), 10.0)
    assert shortlist((9.0, 10.0), [[0, 0.1], [0, 0]], 4)[0] == Hierarchy((1,), (), 10.0)
    assert select_hierarchy((5.0,), [[0]], 4) == Hierarchy((0,), (), 5.0)


@pytest.mark.parametrize(
    ("costs", "alpha", "t_max", "sentence"),
    [
        ((), [], 4, "at least the target"),
        ((0.0, 1.0), [[0, 0.5], [0, 0]], 4, "costs must be"),
        ((1.0, 2.0), [[0, 1.5], [0, 0]], 4, "alpha of models 0 and 1"),
        ((1.0, 2.0), [[0, 0.5], [0, 0]], 0, "t_max must be"),
    ],
)
def test_what_forms_no_hierarchy_is_refused(costs, alpha, t_max: int, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        select_hierarchy(costs, alpha, t_max)
