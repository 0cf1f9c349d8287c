"""The +2/-1 schedule."""

import pytest

from draftwise.methods.heuristic import Heuristic
from draftwise.types import Now, Round

NOW = Now(batch=1, context=10, room=100, lag=0)


def lengths(policy: Heuristic, rounds: list[tuple[int, int]]) -> list[int]:
    state, found = policy.init(None), []
    for drafted, accepted in rounds:
        state = policy.update(state, Round(drafted, drafted, accepted, 0, accepted + 1, 1, drafted + 1, 0.0, 0.0))
        found.append(policy.budget(state, NOW))
    return found


def test_trace() -> None:
    assert Heuristic().budget(Heuristic().init(None), NOW) == 5
    assert lengths(Heuristic(), [(5, 5), (7, 3), (6, 6), (8, 0), (7, 7)]) == [7, 6, 8, 7, 9]


def test_it_stays_within_its_bounds() -> None:
    assert lengths(Heuristic(start=2), [(2, 0), (1, 0), (1, 0)]) == [1, 1, 1]
    assert lengths(Heuristic(start=19), [(19, 19), (20, 20)]) == [20, 20]


def test_a_round_cut_short_and_accepted_whole_counts_as_accepted() -> None:
    assert lengths(Heuristic(), [(3, 3)]) == [7]


def test_the_next_request_starts_afresh_unless_asked() -> None:
    assert Heuristic().init(9) == 5
    assert Heuristic(persist=True).init(9) == 9
    assert Heuristic(persist=True).init(None) == 5


@pytest.mark.parametrize("options", [{"start": 0}, {"start": 21}, {"up": -1}, {"down": -1}])
def test_bad_options(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be .* got"):
        Heuristic(**options)
