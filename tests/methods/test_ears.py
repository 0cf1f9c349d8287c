"""EARS on the reference table: laws of one drafted token, by going through all uniforms."""

import pytest
import torch

from draftwise.methods.ears import EARS
from draftwise.methods.speculative import Speculative
from draftwise.types import Draft, Target, Uniforms, Verdict

STEPS = 4000
ROWS = [
    ((0.5, 0.3, 0.2), (0.2, 0.5, 0.3), 0.0, True, (1, 0.6, 2 / 3), (0.5, 0.3, 0.2)),
    ((0.5, 0.3, 0.2), (0.2, 0.5, 0.3), 0.3, True, (1, 0.75, 0.816667), (0.38, 0.375, 0.245)),
    ((0.5, 0.3, 0.2), (0.2, 0.5, 0.3), 1.0, True, (1, 1, 1), (0.2, 0.5, 0.3)),
    ((0.9, 0.06, 0.04), (0.3, 0.4, 0.3), 0.3, True, (1, 0.18, 0.163333), (0.879, 0.072, 0.049)),
    ((0.6, 0.4, 0.0), (0.5, 0.4, 0.1), 0.3, False, (1, 1, 0.12), (0.588, 0.4, 0.012)),
    ((0.6, 0.4, 0.0), (0.5, 0.4, 0.1), 0.3, True, (1, 1, 0), (0.6, 0.4, 0.0)),
]


def judge(rule: EARS | Speculative, p: tuple[float, ...], q: tuple[float, ...] | None, token: int, u: float) -> Verdict:
    """The verdict on one token; the row after it is p again."""
    law = torch.tensor([p, p])
    target = Target(law, law.log(), law[0, [token]] > 0)
    draft = Draft(torch.tensor([token]), None if q is None else torch.tensor([q]))
    uniforms = Uniforms(torch.tensor([u], dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
    return rule.judge(target, draft, uniforms, 0)[0]


@pytest.mark.parametrize(("p", "q", "beta", "guard", "chances", "law"), ROWS)
def test_the_reference_table(p, q, beta: float, guard: bool, chances, law) -> None:
    rule = EARS(beta, guard)
    found = [sum(len(judge(rule, p, q, x, (k + 0.5) / STEPS).path) for k in range(0, STEPS, 8)) / (STEPS / 8) for x in range(3)]
    assert found == pytest.approx(chances, abs=3e-3)
    emitted = torch.zeros(3)
    for x in range(3):
        rest = judge(rule, p, q, x, 1 - 1e-9)
        after = rest.weights / rest.weights.sum()
        emitted += q[x] * (chances[x] * torch.nn.functional.one_hot(torch.tensor(x), 3) + (1 - chances[x]) * after)
    assert emitted.tolist() == pytest.approx(law, abs=1e-5)


def test_single_draws() -> None:
    p, q = (0.5, 0.3, 0.2), (0.2, 0.5, 0.3)
    assert judge(EARS(), p, q, 1, 0.70).path == [0]
    assert judge(EARS(), p, q, 1, 0.70).relaxed == (0,)
    assert judge(Speculative(), p, q, 1, 0.70).path == []
    assert judge(EARS(), p, q, 1, 0.80).path == []
    assert judge(EARS(), p, q, 1, 0.50).relaxed == ()


@pytest.mark.parametrize("q", [None, (0.2, 0.5, 0.3)])
def test_without_tolerance_it_is_the_lossless_test(q) -> None:
    for k in range(200):
        for x in range(3):
            ours, theirs = (judge(rule, (0.5, 0.3, 0.2), q, x, k / 200) for rule in (EARS(beta=0.0), Speculative()))
            assert (ours.path, ours.relaxed) == (theirs.path, ())
            assert torch.equal(ours.weights, theirs.weights)


def test_it_does_nothing_at_temperature_0() -> None:
    for x in range(3):
        assert judge(EARS(beta=1.0, guard=False), (0.0, 1.0, 0.0), None, x, 1e-9).path == ([0] if x == 1 else [])


@pytest.mark.parametrize("beta", [-0.1, 1.1])
def test_a_tolerance_outside_its_range_is_refused(beta: float) -> None:
    with pytest.raises(ValueError, match="beta must be in"):
        EARS(beta)
