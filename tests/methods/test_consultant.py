"""Consultant Decoding on its reference trace."""

from __future__ import annotations

import math

import pytest
import torch

from draftwise.methods.consultant import Average, Consultant
from draftwise.types import Draft, Target, Uniforms, Verdict


def judge(rule: Consultant, state: Average, drafted: list[float], own: float = 0.6, accept: float = 0.0) -> tuple[Verdict, Average]:
    """Greedy: the target's own choice is token 0 with probability `own`, the drafted token 1 has the given one; the rest goes to token 2."""
    n = len(drafted)
    raw = torch.tensor([[own, x, max(0.0, 1 - own - x)] for x in [*drafted, 0.1]])
    raw[:, 2:] = raw[:, 2:].clamp(min=1e-6)
    logits = torch.where(raw > 0, raw, 1e-9).log()
    p = torch.zeros_like(raw)
    p[:, 0] = 1
    u = Uniforms(torch.full((n,), accept, dtype=torch.float64), torch.full((n + 1,), 0.5, dtype=torch.float64))
    return rule.judge(Target(p, logits, torch.ones(n, dtype=torch.bool)), Draft(torch.ones(n, dtype=torch.long)), u, state)


def near(state: Average, r: float) -> bool:
    return state.known and state.r == pytest.approx(r, abs=3e-5)  # the rows of the test are normalised to 1e-5


def test_the_reference_trace() -> None:
    rule = Consultant()
    verdict, state = judge(rule, Average(), [0.5], own=0.5)
    assert (verdict.path, near(state, 0.693147)) == ([0], True)
    verdict, state = judge(rule, state, [0.3], own=0.6)
    assert (verdict.path, near(state, 1.101808)) == ([0], True)
    verdict, state = judge(rule, state, [0.05], own=0.6)
    assert (verdict.path, int(verdict.weights.argmax()), near(state, 0.629022)) == ([], 0, True)
    verdict, state = judge(rule, state, [0.1, 0.13], own=0.7)
    assert (verdict.path, verdict.relaxed, near(state, 0.678914)) == ([0], (0,), True)
    verdict, state = judge(rule, state, [0.14], own=0.7)
    assert (verdict.path, near(state, 1.708673)) == ([0], True)
    verdict, state = judge(rule, state, [0.6], own=0.4)
    assert (verdict.path, near(state, 0.750395)) == ([0], True)


def test_a_round_of_its_own() -> None:
    verdict, state = judge(Consultant(reset=True), Average(True, 0.629022), [0.1, 0.13], own=0.7)
    assert (verdict.path, near(state, 0.356675)) == ([], True)


def test_no_level_at_all_is_plain_decoding_and_no_limit_accepts_everything() -> None:
    assert judge(Consultant(eps=-math.inf), Average(), [0.4, 0.4])[0].path == []
    assert judge(Consultant(eps=math.inf), Average(), [0.001, 0.001])[0].path == [0, 1]


def test_without_smoothing_it_is_a_threshold() -> None:
    edge = math.exp(-2.0)
    for x in (edge * 0.98, edge * 1.02):
        for before in (Average(), Average(True, 9.0)):
            assert len(judge(Consultant(beta=0.0), before, [x])[0].path) == (x > edge)


def test_the_drafts_law_is_not_looked_at() -> None:
    verdict, state = judge(Consultant(), Average(), [0.5, 0.05], own=0.5)
    p = torch.tensor([[0.2, 0.5, 0.3]] * 2)
    for law in (p, p.flip(-1)):
        raw = torch.tensor([[0.5, 0.5, 1e-6], [0.5, 0.05, 0.45], [0.5, 0.1, 0.4]])
        hot = torch.zeros_like(raw)
        hot[:, 0] = 1
        u = Uniforms(torch.zeros(2, dtype=torch.float64), torch.full((3,), 0.5, dtype=torch.float64))
        target = Target(hot, raw.log(), torch.ones(2, dtype=torch.bool))
        found, after = Consultant().judge(target, Draft(torch.ones(2, dtype=torch.long), law), u, Average())
        assert (found.path, after.r) == (verdict.path, pytest.approx(state.r, abs=3e-5))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({"eps": math.nan}, "eps must be"), ({"beta": 1.0}, "beta must be"), ({"beta": -0.1}, "beta must be")],
)
def test_options_outside_their_range_are_refused(options: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Consultant(**options)
