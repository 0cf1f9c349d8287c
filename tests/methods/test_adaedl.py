"""AdaEDL's bound and its moving threshold."""

import pytest

from draftwise.methods.adaedl import AdaEDL, History
from draftwise.types import DraftStep, Now, Round

NOW = Now(batch=1, context=10, room=100, lag=0)


def a_round(drafted: int, accepted: int) -> Round:
    return Round(drafted, drafted, accepted, 0, accepted + 1, 1, drafted + 1, 0.0, 0.0)


@pytest.mark.parametrize(("entropy", "bound"), [(0.2, 0.8), (0.6, 0.653590), (1.0, 0.552786), (2.0, 0.367544)])
def test_the_bound_at_the_reference_points(entropy: float, bound: float) -> None:
    step = [DraftStep(0, 1, 0.5, 0.5, 0.2, entropy)]
    assert AdaEDL().more(History(0.9, bound - 1e-6), NOW, step)
    assert not AdaEDL().more(History(0.9, bound + 1e-6), NOW, step)


def test_trace() -> None:
    """Worked by hand from the formulas of the module: 0.6 -> aim 0.61 -> 0.601 -> aim 0.611 -> 0.602 -> aim 0.592 -> 0.601."""
    policy = AdaEDL()
    state = policy.init(None)
    assert state == History(0.9, 0.6)
    found = []
    for drafted, accepted in ((4, 2), (5, 5), (4, 4)):
        state = policy.update(state, a_round(drafted, accepted))
        found.append((round(state.rate, 6), round(state.threshold, 6)))
    assert found == [(0.7, 0.601), (0.85, 0.602), (0.925, 0.601)]


def test_poor_acceptance_stops_earlier() -> None:
    policy = AdaEDL()
    poor = good = policy.init(None)
    for _ in range(50):
        poor, good = policy.update(poor, a_round(5, 0)), policy.update(good, a_round(5, 5))
    step = [DraftStep(0, 1, 0.5, 0.5, 0.2, 0.75)]
    assert not policy.more(poor, NOW, step)
    assert policy.more(good, NOW, step)


def test_the_threshold_stays_a_probability() -> None:
    policy = AdaEDL(step=1.0, keep=0.0)
    state = policy.init(None)
    for accepted in (0, 0, 0):
        state = policy.update(state, a_round(5, accepted))
    assert state.threshold == 1.0


@pytest.mark.parametrize("options", [{"target": 1.5}, {"keep": -0.1}, {"scale": float("nan")}, {"cap": 0}])
def test_bad_options(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="got"):
        AdaEDL(**options)
