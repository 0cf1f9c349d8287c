"""GammaTune's reference trace."""

import pytest

from draftwise.methods.gammatune import GammaTune, GammaTunePlus, Smoothed
from draftwise.types import DraftStep, Now, Round

NOW = Now(batch=1, context=10, room=100, lag=0)
EXPANDING = [(n, n, 2.504, min(n + 2, 20)) for n in (5, 7, 9, 11, 13, 15, 17, 19)]
TRACE = [  # used, accepted, g after, next n
    (4, 4, 4.0, 6),
    (6, 6, 4.0, 8),
    (8, 2, 3.6, 4),
    (4, 0, 2.88, 3),
    (3, 1, 2.504, 3),
    (3, 3, 2.504, 5),
    *EXPANDING,
    (20, 20, 2.504, 20),
    (20, 3, 2.6032, 3),
]


def a_round(drafted: int, accepted: int) -> Round:
    return Round(drafted, drafted, accepted, 0, accepted + 1, 1, drafted + 1, 0.0, 0.0)


@pytest.mark.parametrize("policy", [GammaTune(), GammaTunePlus()], ids=["plain", "plus"])
def test_trace(policy: GammaTune | GammaTunePlus) -> None:
    state = policy.init(None)
    for used, accepted, g, n in TRACE:
        assert policy.budget(state, NOW) == used
        state = policy.update(state, a_round(used, accepted))
        assert state.g == pytest.approx(g, abs=1e-9)
        assert policy.budget(state, NOW) == n


def test_the_lower_clip() -> None:
    state, found = Smoothed(2, 1.5), []
    for _ in range(3):
        state = GammaTune().update(state, a_round(state.n, 0))
        found.append((state.n, pytest.approx(state.g)))
    assert found == [(2, 1.2), (1, 1.0), (1, 1.0)]


def test_rounding_does_not_lengthen() -> None:
    assert 0.8 * 3 + 0.2 * 3 > 3
    assert GammaTune().update(Smoothed(5, 3.0), a_round(5, 3)).n == 3


def test_a_round_cut_by_the_budget_is_no_rejection() -> None:
    assert GammaTune().update(Smoothed(8, 4.0), a_round(3, 3)) == Smoothed(5, 4.0)


def test_without_eta_and_delta_it_is_a_fixed_length() -> None:
    policy = GammaTune(eta=0.0, delta=0)
    state = policy.init(None)
    for accepted in (4, 0, 2, 4, 3):
        state = policy.update(state, a_round(4, accepted))
        assert policy.budget(state, NOW) == 4


def test_plus_stops_after_an_unsure_row() -> None:
    policy = GammaTunePlus()
    sure, unsure = DraftStep(0, 1, 0.1, 0.4, 0.3, 1.0), DraftStep(1, 1, 0.1, 0.39, 0.3, 1.0)
    assert policy.more(policy.init(None), NOW, [unsure, sure])
    assert not policy.more(policy.init(None), NOW, [sure, unsure])
    assert GammaTunePlus(tau=0.0).more(policy.init(None), NOW, [unsure])


@pytest.mark.parametrize("options", [{"eta": 1.1}, {"delta": -1}, {"low": 0}, {"start": 30}, {"low": 5}])
def test_bad_options(options: dict[str, float]) -> None:
    for policy in (GammaTune, GammaTunePlus):
        with pytest.raises(ValueError, match="got"):
            policy(**options)
    with pytest.raises(ValueError, match="tau must be a probability"):
        GammaTunePlus(tau=2.0)
