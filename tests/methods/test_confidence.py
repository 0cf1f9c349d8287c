"""The learnt confidence threshold, against a brute-force ROC over the binned probabilities."""

import random

import pytest

from draftwise.methods.confidence import Confidence, Judged
from draftwise.types import DraftStep, Now, Round

NOW = Now(batch=1, context=10, room=100, lag=0)


def a_round(probs: list[float], accepted: int) -> Round:
    steps = tuple(DraftStep(i, 0, prob, prob, 0.0, 1.0) for i, prob in enumerate(probs))
    return Round(len(probs), len(probs), accepted, 0, accepted + 1, 1, len(probs) + 1, 0.0, 0.0, steps=steps)


def roc_threshold(probs: list[float], kept: list[bool], bins: int) -> float:
    """The highest of the thresholds with the least cost, each the lower edge of a bin that holds a token."""
    binned = [min(int(prob * bins), bins - 1) / bins for prob in probs]
    best = (float("inf"), 0.0)
    for t in sorted(set(binned), reverse=True):
        fpr = sum(b >= t for b, k in zip(binned, kept, strict=True) if not k) / kept.count(False)
        fnr = sum(b < t for b, k in zip(binned, kept, strict=True) if k) / kept.count(True)
        if fpr + 3 * fnr < best[0] - 1e-12:
            best = (fpr + 3 * fnr, t)
    return best[1]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("bins", [10, 100])
def test_against_brute_force(seed: int, bins: int) -> None:
    draw = random.Random(seed)
    policy = Confidence(bins=bins)
    state = policy.init(None)
    probs: list[float] = []
    kept: list[bool] = []
    for _ in range(30):
        drafted = [draw.random() ** 0.3 for _ in range(draw.randint(1, 8))]
        accepted = next((i for i, prob in enumerate(drafted) if draw.random() > prob), len(drafted))
        state = policy.update(state, a_round(drafted, accepted))
        judged = drafted[: accepted + 1]
        probs += judged
        kept += [i < accepted for i in range(len(judged))]
        learnt = len(probs) > 5 and len(set(kept)) == 2
        assert state.threshold == (roc_threshold(probs, kept, bins) if learnt else 0.4)


def test_worked_example() -> None:
    """Six tokens: 0.95, 0.85, 0.55 accepted and 0.65, 0.25, 0.15 rejected. Missing an accepted token costs 1, keeping a rejected one 1/3:
    the threshold 0.55 keeps 0.65 in vain, a cost of 1/3; 0.85 would miss 0.55, a cost of 1."""
    policy = Confidence()
    state = policy.init(None)
    for probs, accepted in (([0.95, 0.65], 1), ([0.85, 0.25], 1)):
        state = policy.update(state, a_round(probs, accepted))
    assert state.threshold == 0.4
    state = policy.update(state, a_round([0.555, 0.15, 0.99], 1))
    assert state.threshold == 0.55
    assert policy.more(state, NOW, a_round([0.56], 0).steps)
    assert not policy.more(state, NOW, a_round([0.9, 0.54], 0).steps)


def test_tokens_after_the_first_rejection_are_not_judged() -> None:
    state = Confidence(bins=10).update(Confidence(bins=10).init(None), a_round([0.95, 0.35, 0.15], 1))
    assert (sum(state.accepted), sum(state.rejected)) == (1, 1)
    assert state.rejected[3] == 1


def test_the_first_threshold_and_certainty() -> None:
    policy = Confidence()
    assert policy.budget(policy.init(None), NOW) == 20
    assert policy.more(policy.init(None), NOW, a_round([0.4], 0).steps)
    assert not policy.more(policy.init(None), NOW, a_round([0.39], 0).steps)
    assert policy.update(policy.init(None), a_round([1.0], 1)).accepted[99] == 1


def test_a_drafter_without_steps_teaches_nothing() -> None:
    policy = Confidence()
    assert policy.update(policy.init(None), a_round([0.5], 0)._replace(steps=())) == policy.init(None)


def test_persistence() -> None:
    last = Judged(0.7, (1,) * 100, (0,) * 100)
    assert Confidence(persist=True).init(last) == last
    assert Confidence().init(last).threshold == 0.4


@pytest.mark.parametrize("options", [{"threshold": 1.1}, {"threshold": float("nan")}, {"cap": 0}, {"miss_cost": -1.0}, {"bins": 1}])
def test_bad_options(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Confidence(**options)
