"""Fixed draft lengths."""

import pytest

from draftwise.methods.fixed import Fixed
from draftwise.types import Now, Round

NOW = Now(batch=1, context=10, room=100, lag=0)


@pytest.mark.parametrize("n", [0, 1, 5])
def test_whatever_happens_the_length_stays(n: int) -> None:
    policy = Fixed(n)
    state = policy.init(None)
    for accepted in (0, n):
        assert policy.budget(state, NOW) == n
        state = policy.update(state, Round(n, n, accepted, 0, accepted + 1, 1, n + 1, 0.0, 0.0))
    assert policy.budget(state, NOW) == n


def test_a_negative_length_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 0 draft tokens"):
        Fixed(-1)
