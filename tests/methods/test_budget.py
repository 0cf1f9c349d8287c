"""The account of a budget: what it books, when it says no, and that the promise holds at every length of a text."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from draftwise import catalog
from draftwise.engine import Engine
from draftwise.methods.budget import Account, Budget
from draftwise.methods.ears import EARS
from draftwise.methods.speculative import Speculative
from draftwise.methods.typical import Typical
from draftwise.types import Draft, Sampling, Target, Uniforms, Verdict
from tables import pair

P = torch.tensor([[0.5, 0.3, 0.2]] * 5)


def judge(rule: Budget, state: Account, n: int, relax=lambda _: True) -> tuple[Verdict, Account]:
    """Four draws of token 1 that the rejection test refuses (u = 0.99) and typical acceptance keeps."""
    u = Uniforms(torch.full((n,), 0.99, dtype=torch.float64), torch.zeros(n + 1, dtype=torch.float64))
    target = Target(P[: n + 1], P[: n + 1].log(), torch.ones(n, dtype=torch.bool))
    return rule.judge(target, Draft(torch.ones(n, dtype=torch.long)), u, state, relax)


def test_the_account_is_earned_before_it_is_spent() -> None:
    rule = Budget(tv=0.5, over=Typical())
    verdict, state = judge(rule, rule.init(None), 4)
    assert (verdict.path, state) == ([], Account(1, 0.0, 0.0, 1, 0))  # half a token is earned by one
    verdict, state = judge(rule, state, 4)
    assert (verdict.relaxed, state) == ((0,), Account(3, 1.0, 0.0, 2, 0))  # 1 of 2; the next would be 2 of 3
    verdict, state = judge(rule, state, 4)
    assert (verdict.relaxed, state[:2]) == ((0,), (5, 2.0))
    assert rule.report(state) == {"tv": 2.0, "tv_left": 0.5, "refused": 3.0}


def test_nats_are_booked_and_impossible_tokens_never_bought() -> None:
    rule = Budget(tv=1.0, kl=0.7, over=Typical())
    verdict, state = judge(rule, rule.init(None), 4)
    assert verdict.relaxed == ()  # 1.204 nats, 0.7 earned
    verdict, state = judge(rule, state, 4)
    assert verdict.relaxed == (0,)
    assert state.kl == pytest.approx(1.203973)
    hot = torch.tensor([[1.0, 0.0, 0.0]] * 2)
    raw = torch.tensor([[0.5, 0.3, 0.2]] * 2)
    u = Uniforms(torch.zeros(1).double(), torch.zeros(2).double())
    greedy = Target(hot, raw.log(), torch.tensor([True]))
    rich = Account(1000, 0.0, 0.0, 0, 0)
    assert rule.judge(greedy, Draft(torch.tensor([1])), u, rich)[0].path == []
    assert Budget(tv=1.0, over=Typical()).judge(greedy, Draft(torch.tensor([1])), u, rich)[0].relaxed == (0,)


def test_who_stands_above_may_still_say_no_and_nothing_is_booked_then() -> None:
    rule = Budget(tv=1.0, over=Typical())
    verdict, state = judge(rule, rule.init(None), 4, relax=lambda _: False)
    assert (verdict.path, state) == ([], Account(1, 0.0, 0.0, 0, 0))


@pytest.mark.parametrize("inner", ["adasd", "typical", "consultant", "ears:beta=1.0", "fly:window=1"])
def test_the_switches(inner: str) -> None:
    """A rate of 1 is the rule itself; a rate of 0 is the rule with relaxing forbidden."""
    context = pair(vocab=5, twist=0.8, order=1, sharpness=1.0)

    def rounds(accept: str, forbidden: bool = False) -> list[tuple[int, int, int]]:
        found = []
        for seed in range(6):
            engine = Engine(context.target)
            method = catalog.method("fixed:n=4", context, accept=accept)
            sequence = engine.add([0, 1], Sampling(seed=seed, temperature=0.9, max_tokens=40), method)
            if forbidden:
                sequence.relax = lambda _: False
            list(engine.stream())
            found += [(r.accepted, r.relaxed, r.emitted) for r in sequence.rounds]
        return found

    assert rounds(f"budget:tv=1.0,over=[{inner}]") == rounds(inner)
    assert any(relaxed for _, relaxed, _ in rounds(inner))
    assert rounds(f"budget:tv=0.0,over=[{inner}]") == rounds(inner, forbidden=True)


@settings(max_examples=25, deadline=None)
@given(st.floats(0, 1), st.integers(0, 1000), st.sampled_from([0.0, 0.8]), st.sampled_from(["adasd", "typical", "consultant"]))
def test_the_promise_holds_at_every_length(tv: float, seed: int, temperature: float, inner: str) -> None:
    context = pair(vocab=5, twist=0.8, order=1, sharpness=1.0)
    engine = Engine(context.target)
    method = catalog.method("fixed:n=4", context, accept=f"budget:tv={tv:.6f},over=[{inner}]")
    sequence = engine.add([0, 1], Sampling(seed=seed, temperature=temperature, max_tokens=50), method)
    origins = [origin for chunk in engine.stream() for origin in chunk.origins]
    for n in range(1, len(origins) + 1):
        assert origins[:n].count("relaxed") <= round(tv, 6) * n + 1e-9
    assert sequence.accept_state.tv >= origins.count("relaxed")  # what a limit cut off was paid for


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"tv": -0.1}, "tv must be in"),
        ({"tv": 1.5}, "tv must be in"),
        ({"kl": -1.0}, "kl must be"),
        ({"over": "adasd"}, r"in brackets, such as over=\[adasd\]"),
        ({"over": Speculative()}, "is lossless"),
    ],
)
def test_impossible_budgets_are_refused(options: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Budget(**options)


def test_an_unbiased_account_of_ears() -> None:
    """Row 2 of the reference table of EARS: its law is 0.12 from the target's, and that share of its tokens is relaxed."""
    p, q, steps = torch.tensor([[0.5, 0.3, 0.2]] * 2), torch.tensor([[0.2, 0.5, 0.3]]), 1000
    booked = 0.0
    for x in range(3):
        for k in range(steps):
            u = Uniforms(torch.tensor([(k + 0.5) / steps], dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
            verdict, _ = EARS().judge(Target(p, p.log(), torch.tensor([True])), Draft(torch.tensor([x]), q), u, 0)
            booked += float(q[0, x]) * len(verdict.relaxed) / steps
    assert booked == pytest.approx(0.12, abs=1e-3)
