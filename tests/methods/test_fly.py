"""FLy on its reference tables: where it stops, for mismatches at given places with given entropies."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from draftwise.methods.fly import FLy
from draftwise.types import Draft, Target, Uniforms, Verdict

V = 16


def row(entropy: float) -> Tensor:
    """A law of V tokens whose likeliest is 0, with this entropy over two tokens: found by bisection."""
    low, high = 1e-9, 0.5
    for _ in range(80):
        b = (low + high) / 2
        low, high = (b, high) if -b * math.log(b) - (1 - b) * math.log(1 - b) < entropy else (low, b)
    law = torch.zeros(V)
    law[0], law[1] = 1 - b, b
    return law


def judge(rule: FLy, n: int, mismatches: dict[int, float], allowed: bool = True) -> Verdict:
    """A greedy verdict on n tokens: token 0 matches; at a mismatch token 1 is drafted and the row has the given entropy."""
    raw = torch.stack([row(mismatches.get(i, 0.1)) for i in range(n + 1)])
    p = torch.zeros(n + 1, V)
    p[:, 0] = 1
    tokens = torch.tensor([int(i in mismatches) for i in range(n)], dtype=torch.long)
    u = Uniforms(torch.full((n,), 0.5, dtype=torch.float64), torch.full((n + 1,), 0.5, dtype=torch.float64))
    return rule.judge(Target(p, raw.log(), torch.full((n,), allowed)), Draft(tokens), u, 0)[0]


TABLE = [
    ({}, 15, 15),
    ({2: 0.5}, 15, 15),
    ({2: 0.2}, 2, 2),
    ({2: 0.5, 7: 0.5}, 2, 2),
    ({2: 0.5, 8: 0.5}, 15, 2),
    ({1: 0.5, 8: 0.5}, 15, 15),
    ({2: 0.5, 8: 0.2}, 8, 2),
    ({8: 0.5}, 15, 15),
    ({9: 0.5}, 9, 9),
]


@pytest.mark.parametrize(("mismatches", "released", "paper"), TABLE)
def test_the_reference_table(mismatches: dict[int, float], released: int, paper: int) -> None:
    found = judge(FLy(), 15, mismatches)
    assert len(found.path) == released
    assert found.relaxed == tuple(i for i in mismatches if i < released)
    scaled = FLy(gate="normalized", theta=0.3 / math.log(V))  # the table holds the same number against both gates
    assert len(judge(scaled, 15, mismatches).path) == paper


def test_short_drafts_are_never_relaxed() -> None:
    assert judge(FLy(), 6, {0: 0.6}).path == []
    assert len(judge(FLy(), 7, {0: 0.6}).path) == 7


def test_theta_above_every_entropy_is_exact_match() -> None:
    for mismatches, *_ in TABLE:
        found = judge(FLy(theta=1.1), 15, mismatches)
        assert (len(found.path), found.relaxed) == (min(mismatches, default=15), ())


def test_a_refused_token_is_replaced_by_the_targets_own() -> None:
    assert int(judge(FLy(), 15, {9: 0.5}).weights.argmax()) == 0


def test_what_the_request_forbids_is_not_relaxed() -> None:
    assert len(judge(FLy(), 15, {2: 0.5}, allowed=False).path) == 2


@pytest.mark.parametrize(
    ("law", "top3", "normalized"),
    [
        ((0.9, 0.1, 0.0), 0.325083, 0.295903),
        ((0.93, 0.07, 0.0), 0.253639, 0.230872),
        ((0.5, 0.3, 0.2), 1.029653, 0.937231),
        ((0.4, 0.3, 0.2, 0.1), 1.049596, 0.923220),
        ((1 / 36,) * 36, 0.298627, 1.0),
    ],
)
def test_the_reference_entropies(law: tuple[float, ...], top3: float, normalized: float) -> None:
    from draftwise.evidence import Live

    raw = torch.tensor([law, law])
    p = torch.zeros_like(raw)
    p[:, 0] = 1
    live = Live(Target(p, raw.log(), torch.tensor([True])), Draft(torch.tensor([1])), Uniforms(torch.zeros(1).double(), torch.zeros(2).double()))
    assert FLy().entropy(live, 0) == pytest.approx(top3, abs=2e-6)
    assert FLy(gate="normalized").entropy(live, 0) == pytest.approx(normalized, abs=2e-6)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({"window": 0}, "window must be"), ({"theta": -1.0}, "theta must be"), ({"gate": "top2"}, "gate must be")],
)
def test_options_outside_their_range_are_refused(options: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        FLy(**options)
