"""AdaSD's golden trace: three rounds, both halves of the method together."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch

from draftwise import probs
from draftwise.methods.adasd import AdaSDAccept, AdaSDStop, Judged, Rejected
from draftwise.methods.adasd_kde import mean
from draftwise.types import Draft, DraftStep, Now, Round, Target, Uniforms, Verdict

NOW = Now(batch=1, context=10, room=100, lag=0)
ROUNDS = [
    ([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.4, 0.35, 0.25]], [[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.3, 0.3, 0.4], [0.2, 0.2, 0.6]]),
    ([[0.5, 0.45, 0.05], [0.4, 0.35, 0.25], [0.8, 0.1, 0.1]], [[0.45, 0.5, 0.05], [0.1, 0.1, 0.8], [0.3, 0.3, 0.4], [0.2, 0.2, 0.6]]),
    ([[0.9, 0.05, 0.05], [0.2, 0.7, 0.1], [0.1, 0.2, 0.7]], [[0.5, 0.3, 0.2], [0.2, 0.7, 0.1], [0.15, 0.15, 0.7], [0.3, 0.3, 0.4]]),
]


class Both(NamedTuple):
    stop: Rejected
    judged: Judged


def play(rule: AdaSDAccept, state: Both, number: int, accept: tuple[float, ...] = (0.5, 0.5, 0.5)) -> tuple[list[int], Verdict, Both]:
    """One greedy round with a cap of three: the emitted tokens, the verdict, and both states after it."""
    q, p = (torch.tensor(rows) for rows in ROUNDS[number])
    stop, steps = AdaSDStop(cap=3), []
    for i, figures in enumerate(probs.confidence(q.log(), q.argmax(-1)).tolist()):
        steps.append(DraftStep(i, int(q[i].argmax()), *figures))
        if not stop.more(state.stop, NOW, steps):
            break
    n = len(steps)
    tokens = torch.tensor([step.token for step in steps])
    law = q[:n] if rule.base == "ratio" else None
    rows = p[: n + 1] if rule.base == "ratio" else torch.nn.functional.one_hot(p[: n + 1].argmax(-1), 3).float()
    target = Target(rows, p[: n + 1].log(), torch.ones(n, dtype=torch.bool))
    u = Uniforms(torch.tensor(accept[:n], dtype=torch.float64), torch.full((n + 1,), 0.5, dtype=torch.float64))
    verdict, judged = rule.judge(target, Draft(tokens, law, q[:n].log(), None, tuple(steps), "test"), u, state.judged)
    a = len(verdict.path)
    record = Round(n, n, a, len(verdict.relaxed), a + 1, 1, n + 1, 0.0, 0.0, steps=tuple(steps))
    return [*tokens[:a].tolist(), int(verdict.weights.argmax())], verdict, Both(stop.update(state.stop, record), judged)


def start(rule: AdaSDAccept) -> Both:
    return Both(AdaSDStop().init(None), rule.init(None))


def figures(state: Both) -> tuple[float, ...]:
    """n_rej, sum e_rej, n_acc, sum d_acc, sum d_rej."""
    return state.stop.n, state.stop.entropy, state.judged.accepted.n, state.judged.accepted.total, state.judged.rejected.total


AFTER = [  # emitted, drafted and accepted, relaxed, state after the round
    ([0, 1], 1, (), (1, 1.029653, 1, 0.100197, 0.345714)),
    ([0, 2], 1, (0,), (2, 2.110181, 2, 0.143777, 0.827218)),
    ([0, 1, 2, 2], 3, (), (2, 2.110181, 5, 0.607348, 0.827218)),
]


@pytest.mark.parametrize("version", [1])
def test_golden_trace(version: int) -> None:
    rule = AdaSDAccept(version=version)
    state = start(rule)
    for number, (tokens, accepted, relaxed, after) in enumerate(AFTER):
        emitted, verdict, state = play(rule, state, number)
        assert (emitted, len(verdict.path), verdict.relaxed) == (tokens, accepted, relaxed)
        assert figures(state) == pytest.approx(after, abs=2e-6)
        assert state.judged.rejected.n == state.stop.n
    assert state.stop.entropy / state.stop.n == pytest.approx(1.055090, abs=1e-6)
    assert (mean(state.judged.accepted) + mean(state.judged.rejected)) / 2 == pytest.approx(0.267539, abs=1e-6)


def test_golden_trace_with_the_ratio_base() -> None:
    rule = AdaSDAccept(base="ratio")
    state = start(rule)
    accepts = [(0.5, 0.9, 0.5), (0.95, 0.6, 0.5), (0.3, 0.8, 0.4)]
    for number, (tokens, _, relaxed, after) in enumerate(AFTER):
        emitted, verdict, state = play(rule, state, number, accepts[number])
        assert (emitted[:2], verdict.relaxed) == (tokens[:2], relaxed)
        assert figures(state) == pytest.approx(after, abs=2e-6)
        if number < 2:
            assert int((verdict.weights > 0).sum()) == 1  # both residuals are one-hot


def test_golden_trace_without_the_acceptance_threshold() -> None:
    rule = AdaSDAccept(tv=False)
    state = start(rule)
    found = []
    for number in range(3):
        emitted, verdict, state = play(rule, state, number)
        assert verdict.relaxed == ()
        found.append(emitted)
    assert found == [[0, 1], [1], [0, 1, 2, 2]]
    assert figures(state)[:3] == pytest.approx((2, 1.885342, 4), abs=2e-6)
    assert state.stop.entropy / state.stop.n == pytest.approx(0.942671, abs=1e-6)


def test_the_token_that_trips_the_threshold_stays() -> None:
    state = Rejected(1, 1.0)
    calm, wild = DraftStep(0, 0, 0.5, 0.5, 0.2, 1.0), DraftStep(1, 0, 0.5, 0.5, 0.2, 1.001)
    assert AdaSDStop().more(state, NOW, [calm])
    assert not AdaSDStop().more(state, NOW, [calm, wild])
    assert AdaSDStop().more(Rejected(), NOW, [wild])


def test_version_2_needs_two_different_distances_of_each_kind() -> None:
    rule = AdaSDAccept(version=2)
    state = start(rule)
    relaxed = []
    for number in range(3):
        _, verdict, state = play(rule, state, number)
        relaxed.append(verdict.relaxed)
    assert relaxed == [(), (), ()]  # one distance of each kind before round 2 is no density
    _, verdict, _ = play(rule, state, 1)
    assert verdict.relaxed == (0,)


def two_rows(x: int, y: int) -> tuple[Target, Draft]:
    """A draft of token x over a greedy target that wants y, from nearly the same raw rows."""
    raw = torch.tensor([[0.4, 0.35, 0.25], [0.4, 0.35, 0.25]])
    p = torch.nn.functional.one_hot(torch.tensor([y, y]), 3).float()
    return Target(p, raw.log(), torch.tensor([True])), Draft(torch.tensor([x]), None, (raw[:1] + 0.01).log())


HISTORY = Judged(AdaSDAccept().init(None).accepted._replace(n=1, total=0.1), AdaSDAccept().init(None).rejected._replace(n=1, total=0.5))
HALF = Uniforms(torch.tensor([0.5], dtype=torch.float64), torch.tensor([0.5, 0.5], dtype=torch.float64))


def test_relaxation_can_be_refused_and_masks_hold() -> None:
    target, draft = two_rows(1, 0)
    asked: list[int] = []
    assert AdaSDAccept().judge(target, draft, HALF, HISTORY)[0].relaxed == (0,)
    assert AdaSDAccept().judge(target, draft, HALF, HISTORY, lambda i: bool(asked.append(i)))[0].path == []
    assert asked == [0]
    masked = target._replace(allowed=torch.tensor([False]))
    verdict, after = AdaSDAccept().judge(masked, draft, HALF, HISTORY, lambda i: not asked.append(i))
    assert (verdict.path, verdict.weights.tolist(), asked) == ([], [1.0, 0.0, 0.0], [0])
    assert after.rejected.n == 2


def test_a_distance_at_the_threshold_is_not_below_it() -> None:
    target, draft = two_rows(1, 0)
    d = float(probs.js_distance(target.logits[:1], draft.logits)[0])
    for total, relaxed in ((d, ()), (1.001 * d, (0,))):
        history = Judged(HISTORY.accepted._replace(n=1, total=total), HISTORY.rejected._replace(n=1, total=total))
        assert AdaSDAccept().judge(target, draft, HALF, history)[0].relaxed == relaxed


def test_the_match_base_draws_as_plain_decoding_does() -> None:
    """Without T_V every emitted token is the one that inversion of its row gives, for any uniforms and any draft."""
    generator = torch.Generator().manual_seed(1)
    rule = AdaSDAccept(tv=False)
    for _ in range(200):
        p = (3 * torch.randn(4, 6, generator=generator)).softmax(-1)
        p[torch.rand(4, 6, generator=generator) < 0.3] = 0
        p[:, 0] += 0.1
        sample = torch.rand(4, generator=generator, dtype=torch.float64)
        plain = probs.sample(p, sample).tolist()
        tokens = torch.tensor([t if torch.rand((), generator=generator) < 0.8 else 2 for t in plain[:3]])
        target = Target(p, p.log(), torch.ones(3, dtype=torch.bool))
        draft = Draft(tokens, None, torch.randn(3, 6, generator=generator))
        verdict, _ = rule.judge(target, draft, Uniforms(sample[:3], sample), rule.init(None))
        n = len(verdict.path)
        emitted = [*tokens[:n].tolist(), int(probs.sample(verdict.weights[None], sample[n : n + 1])[0])]
        assert emitted == plain[: n + 1]
        assert n == 3 or verdict.weights[tokens[n]] == 0  # a refused token is not what was drawn, in the weights too


def test_equal_models_accept_everything_at_temperature_0() -> None:
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(3))
    p = torch.nn.functional.one_hot(logits.argmax(-1), 5).float()
    draft = Draft(logits[:3].argmax(-1), None, logits[:3])
    u = Uniforms(torch.rand(3).double(), torch.rand(4).double())
    verdict, state = AdaSDAccept().judge(Target(p, logits, torch.ones(3, dtype=torch.bool)), draft, u, AdaSDAccept().init(None))
    assert verdict.path == [0, 1, 2]
    assert state.accepted.total == 0.0


def test_scaling_all_entropies_changes_no_decision() -> None:
    for scale in (1.0, 1 / math.log(2), 7.0):
        state = Rejected()
        found = []
        for entropy in (0.5, 1.5, 0.9, 1.1, 2.0, 0.2):
            step = (DraftStep(0, 0, 0.5, 0.5, 0.2, scale * entropy),)
            found.append(AdaSDStop().more(state, NOW, step))
            state = AdaSDStop().update(state, Round(1, 1, 0, 0, 1, 1, 2, 0.0, 0.0, steps=step))
        assert found == [True, False, True, False, False, True]


def test_statistics_stay_with_the_request_unless_asked() -> None:
    assert AdaSDStop().init(Rejected(3, 2.0)) == Rejected()
    assert AdaSDStop(persist=True).init(Rejected(3, 2.0)) == Rejected(3, 2.0)
    assert AdaSDAccept().init(HISTORY) != HISTORY
    assert AdaSDAccept(persist=True).init(HISTORY) == HISTORY


def test_a_drafter_without_rows_is_refused_in_a_sentence() -> None:
    target, draft = two_rows(1, 0)
    with pytest.raises(ValueError, match="use a draft model"):
        AdaSDAccept().judge(target, draft._replace(logits=None), HALF, HISTORY)


@pytest.mark.parametrize("options", [{"base": "exact"}, {"version": 3}])
def test_bad_options(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be"):
        AdaSDAccept(**options)
    with pytest.raises(ValueError, match="cap must be"):
        AdaSDStop(cap=0)
