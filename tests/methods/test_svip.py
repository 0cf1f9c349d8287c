"""SVIP's test is H > 0.6 with the constants of the paper."""

import pytest

from draftwise.methods.svip import SVIP
from draftwise.types import DraftStep, Now

NOW = Now(batch=1, context=10, room=100, lag=0)


@pytest.mark.parametrize(("entropy", "goes_on"), [(0.0, True), (0.2, True), (0.599, True), (0.601, False), (1.0, False), (2.0, False)])
def test_the_stop(entropy: float, goes_on: bool) -> None:
    calm = DraftStep(0, 1, 0.9, 0.9, 0.1, 0.0)
    assert SVIP().more(0, NOW, [calm, DraftStep(1, 1, 0.5, 0.5, 0.2, entropy)]) is goes_on


@pytest.mark.parametrize(("entropy", "root"), [(0.2, 0.173205), (0.6, 0.3), (1.0, 0.387298), (2.0, 0.547723)])
def test_the_bound_at_the_reference_points(entropy: float, root: float) -> None:
    step = [DraftStep(0, 1, 0.5, 0.5, 0.2, entropy)]
    assert SVIP(threshold=root + 1e-6).more(0, NOW, step)
    assert not SVIP(threshold=root - 1e-6).more(0, NOW, step)


def test_a_rounding_error_below_zero_is_no_entropy() -> None:
    assert SVIP().more(0, NOW, [DraftStep(0, 1, 1.0, 1.0, 0.0, -1e-9)])


def test_the_cap() -> None:
    assert SVIP().budget(0, NOW) == 40


@pytest.mark.parametrize("options", [{"threshold": -0.1}, {"scale": float("inf")}, {"cap": 0}])
def test_bad_options(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="got"):
        SVIP(**options)
