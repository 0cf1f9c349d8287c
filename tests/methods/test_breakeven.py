"""Break-even: its estimates by hand, its decision at the margin, its floor, and its place beside fixed lengths in simulated worlds."""

from __future__ import annotations

import importlib.util
import math
import random
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftwise.methods.breakeven import _NEXT, Account, Breakeven
from draftwise.methods.breakeven_fit import Fit, chance, faded, logit, rising, seconds, seen
from draftwise.methods.fixed import Fixed
from draftwise.types import DraftStep, Now, Round

COSTS = ((1, 0.1), (2, 0.11), (4, 0.13), (8, 0.17))


def now(draft_s: float = 0.02, lag: int = 1, room: int = 100, costs: tuple[tuple[int, float], ...] = COSTS) -> Now:
    return Now(1, 50, room, lag, draft_s, costs)


def step(i: int, prob: float) -> DraftStep:
    return DraftStep(i, 7, prob, prob, 0.0, 0.0)


def plain(seconds: float = 0.1) -> Round:
    return Round(0, 0, 0, 0, 1, 1, 1, 0.0, seconds)


def drafted(n: int, accepted: int, draft_s: float, verify_s: float, lag: int = 1) -> Round:
    steps = tuple(step(i, 0.9) for i in range(n))
    return Round(n, n, accepted, 0, accepted + 1, 1, n + 1, draft_s, verify_s, False, steps, "draft-model", lag)


def begun(policy: Breakeven) -> Account:
    """After the prompt and plain passes of 0.14 s (the first one takes longer), 0.1 and 0.12 s."""
    state = policy.init(None)
    for round in (Round(0, 0, 0, 0, 1, 1, 60, 0.0, 0.9), plain(0.14), plain(), plain(0.12)):
        state = policy.update(state, round)
    return state


def test_seconds_between_and_beyond_what_was_measured() -> None:
    assert [seconds(COSTS, k) for k in (1, 2, 3, 6, 8, 12)] == pytest.approx([0.1, 0.11, 0.12, 0.15, 0.17, 0.21])
    assert seconds([(2, 0.3), (4, 0.1)], 3) == pytest.approx(0.2)  # a pass does not get cheaper with its width
    assert seconds([(3, 0.5)], 9) == 0.5 and math.isnan(seconds([], 1))


@given(st.lists(st.floats(0, 10), max_size=12))
def test_rising_never_falls_and_keeps_the_sum(values: list[float]) -> None:
    found = rising(values)
    assert len(found) == len(values) and all(a <= b + 1e-12 for a, b in zip(found, found[1:], strict=False))
    assert sum(found) == pytest.approx(sum(values), abs=1e-9)


def test_a_regression_learns_a_rate() -> None:
    fit = Fit((0.0, 0.0), (1.0, 1.0))
    assert chance(fit, (1.0, 2.0)) == 0.5
    once = seen(fit, (1.0, 2.0), True)
    error = 1 - chance(once, (1.0, 2.0))
    assert once.weights == (pytest.approx(error, abs=1e-5), pytest.approx(2 * error, abs=1e-5))  # where the posterior is flat
    assert once.precision == (pytest.approx(1 + error * (1 - error)), pytest.approx(1 + 4 * error * (1 - error)))
    for i in range(4000):
        fit = seen(fit, (1.0, 0.0), i % 4 > 0)
    assert chance(fit, (1.0, 0.0)) == pytest.approx(0.75, abs=0.01)
    half = faded(once, Fit((0.0, 0.0), (1.0, 1.0)), 0.5)
    assert half.weights == once.weights and half.precision == tuple((1 + h) / 2 for h in once.precision)
    assert logit(0.5) == 0 and logit(1.0) == -logit(0.0) == 6


def test_a_sure_thing_that_fails_once_stays_likely() -> None:
    """The draft gave the token before it all of its probability, and twenty such were followed by one that was accepted."""
    fit, x = _NEXT, (1.0, logit(1.0), 0.7, 1.0)
    for _ in range(20):
        fit = seen(fit, x, True)
    assert chance(seen(fit, x, False), x) > 0.8
    assert 0 < chance(seen(seen(_NEXT, x, False), x, True), x) < 1


def test_it_measures_before_it_drafts() -> None:
    policy = Breakeven()
    state = policy.init(None)
    assert policy.budget(state, now(math.nan, costs=())) == 0  # nothing measured
    state = begun(policy)
    assert state.plain_s == 0.1 and state.balance == pytest.approx(0.4)
    assert policy.budget(state, now(math.nan)) == 4  # the price of a draft step is not known


def test_more_at_the_margin() -> None:
    """Another token costs 0.02 + 0.01 s and plain decoding makes 10 tokens a second: it pays above a chance of 0.3."""
    policy, state = Breakeven(), begun(Breakeven())
    third = Fit((logit(0.6), 0.0, 0.0, 0.0), (1.0,) * 4)  # the token to come is taken with a chance of 0.6
    half = Fit((0.0, 0.0, 0.0, 0.0, 0.0), (1.0,) * 5)  # and each of those drafted with 0.5
    state = state._replace(drafted=half, ahead=third)
    assert not policy.more(state, now(0.0201), [step(0, 0.9)])
    assert policy.more(state, now(0.0199), [step(0, 0.9)])
    assert not policy.more(state, now(0.0051), [step(0, 0.9), step(1, 0.9)])  # a chance of 0.15 now
    assert policy.more(state, now(0.0049), [step(0, 0.9), step(1, 0.9)])


def test_a_full_round_earns_and_a_lost_one_pays() -> None:
    policy, state = Breakeven(), begun(Breakeven())
    rich = policy.update(state, drafted(3, 3, 0.06, 0.12))  # four tokens in 0.18 s
    assert rich.balance == pytest.approx(0.4 + 0.22)
    poor = policy.update(state, drafted(3, 0, 0.06, 0.12))
    assert poor.balance == pytest.approx(0.4 - 0.08)
    assert chance(rich.ahead, (1.0, 0.0, 0.0, 0.0)) > chance(poor.ahead, (1.0, 0.0, 0.0, 0.0))
    for _ in range(40):
        rich = policy.update(rich, drafted(3, 3, 0.06, 0.12))
    assert rich.balance == pytest.approx(8.0)  # no more than twenty stakes are saved up


def test_an_empty_account_rests_and_half_a_percent_comes_back() -> None:
    policy, state = Breakeven(), begun(Breakeven())._replace(balance=0.0)
    assert policy.budget(state, now()) == 0
    for _ in range(100):
        state = policy.update(state, plain())
    assert state.balance == pytest.approx(100 * 0.1 * 0.005)
    assert policy.budget(state, now()) > 0


def test_a_long_text_is_read_where_the_answer_is_long_enough() -> None:
    """The target took 5 s for 500 tokens and the draft is five times as fast: it reads 500 in a second. Past answers had 64 tokens of 0.1 s."""
    policy, state = Breakeven(), begun(Breakeven())
    reading = now(lag=500, costs=(*COSTS, (501, 5.1)))
    assert policy.budget(state, reading) > 0
    assert policy.budget(state, reading._replace(room=10)) == 0
    assert policy.budget(state._replace(usual=20.0), reading) == 0
    assert policy.budget(state._replace(usual=20.0, tokens=40), reading) > 0  # it is a long one after all
    assert policy.budget(state, reading._replace(draft_s=math.nan)) > 0
    assert policy.budget(state, reading._replace(draft_s=math.nan, lag=1000)) == 0
    bad = state._replace(emitted=10.0, depth=30.0, rounds=10.0, spent=2.0)  # half the speed of plain decoding
    assert policy.budget(bad, reading) == 0


def test_a_long_text_is_not_read_where_copies_gain_as_much() -> None:
    """As above, but half of the tokens come two at a time without this draft; the next text begins half as sure of that."""
    policy, state = Breakeven(), begun(Breakeven())
    reading = now(lag=500, costs=(*COSTS, (501, 5.1)))
    copied = state
    for _ in range(40):
        copied = policy.update(copied, Round(0, 0, 0, 0, 2, 1, 3, 0.0, 0.1))
    assert copied.others == state.others + 80 and copied.others_s == pytest.approx(state.others_s + 4)
    assert policy.budget(copied._replace(usual=200.0, tokens=0), reading) == 0
    assert policy.budget(state._replace(usual=200.0, tokens=0), reading) > 0
    after = policy.init(copied)
    assert after.others == copied.others / 2
    fast = copied._replace(emitted=90.0, depth=60.0, rounds=30.0, spent=3.0)  # but this draft gains three times as much
    assert policy.budget(fast._replace(usual=200.0, tokens=0), reading) > 0


def test_a_round_is_charged_what_it_usually_takes() -> None:
    """A burst made a round of 0.16 s last half a second. Reading a text is charged as it was the first time, and then as it usually is."""
    policy, state = Breakeven(), begun(Breakeven())
    burst = drafted(2, 0, 0.04, 0.46)._replace(usual_s=0.16)
    assert policy.update(state, burst).balance == pytest.approx(state.balance - 0.06)
    assert policy.update(state, burst._replace(usual_s=math.nan)).balance == pytest.approx(state.balance - 0.4)
    read = policy.update(state, burst._replace(lag=300))
    assert read.debt == pytest.approx(0.4) and read.read_s == pytest.approx(0.34 / 300)
    slow = policy.update(read, burst._replace(lag=300, draft_s=5.0))  # weights came from the disk
    assert slow.debt == pytest.approx(0.4 + 0.4) and read.read_s < slow.read_s < 2.5 * read.read_s
    assert policy.update(slow, burst._replace(lag=300)).read_s < slow.read_s
    assert policy.update(read, burst._replace(lag=300, usual_s=math.nan)).debt == pytest.approx(0.8)


def test_gains_make_good_the_losses_of_a_text_before_they_pay_for_reading() -> None:
    """Wins of 0.08 s and losses of 0.06 s by turns: while the debt lasts the account falls by one loss, not by all of them."""
    policy, state = Breakeven(), begun(Breakeven())
    read = policy.update(state, drafted(1, 1, 1.0, 0.1, lag=300))
    assert read.debt == pytest.approx(0.9)
    for _ in range(10):
        read = policy.update(policy.update(read, drafted(1, 0, 0.05, 0.11)), drafted(1, 1, 0.01, 0.11))
    assert read.balance == pytest.approx(state.balance) and read.debt == pytest.approx(0.9 - 10 * 0.02)
    assert policy.init(policy.update(read, drafted(1, 0, 0.05, 0.11))).lost == 0


def test_the_next_text_begins_with_half_of_what_was_learnt() -> None:
    """Half as sure, with half of the sums; what reading cost and no gain paid back is paid now."""
    policy, state = Breakeven(), begun(Breakeven())
    read = policy.update(state, drafted(2, 2, 0.5, 0.12, lag=300))
    assert read.debt == pytest.approx(0.32) and read.balance == state.balance  # three tokens in 0.62 s
    for _ in range(3):
        read = policy.update(read, drafted(2, 2, 0.04, 0.12))  # gains 0.14 s each, the first two and a part of the third for the debt
    assert read.debt == 0 and read.balance == pytest.approx(state.balance + 0.1)
    owing = policy.update(state, drafted(2, 0, 0.5, 0.12, lag=300))
    after = policy.init(owing)
    assert after.balance == pytest.approx(state.balance - 0.52) and after.debt == 0
    assert policy.budget(after, now(lag=60)) == 0
    again = policy.init(read)
    assert (again.tokens, again.emitted, again.usual) == (0, read.emitted / 2, pytest.approx(0.7 * 64 + 0.3 * read.tokens))
    assert policy.init(read._replace(tokens=128)).usual == pytest.approx(0.9 * 64 + 0.1 * 128)  # long ones are believed more slowly
    assert again.drafted.weights == read.drafted.weights and again.drafted.precision < read.drafted.precision


def test_a_bad_draft_costs_no_more_than_the_stake_and_its_share() -> None:
    """Every round accepts nothing; whatever the policy does, it stays within its account."""
    policy, lost, clock = Breakeven(), 0.0, 0.0
    state = begun(policy)
    for _ in range(5000):
        n = min(policy.budget(state, now()), 3)
        round = drafted(n, 0, 0.02 * n, 0.1 + 0.01 * n) if n else plain()
        lost += round.draft_s + round.verify_s - 0.1
        clock += round.draft_s + round.verify_s
        state = policy.update(state, round)
    assert lost <= 4 * 0.1 + 0.005 * clock + 0.09
    assert lost > 0.003 * clock  # and it goes on probing


@pytest.mark.parametrize(("options", "words"), [({"stake": 0.0}, "stake"), ({"stake": math.nan}, "stake"), ({"cap": 0}, "cap")])
def test_bad_options(options: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Breakeven(**options)  # type: ignore[arg-type]


def simulation() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "breakeven_sim.py"
    spec = importlib.util.spec_from_file_location("breakeven_sim", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("world", "of_best", "of_plain"), [
    ("bf16, good draft", 0.97, 1.2), ("bf16, useless draft", 0.97, 0.975), ("int8, fair draft", 0.9, 0.975), ("gguf, good draft", 0.97, 0.975),
])  # fmt: skip
def test_beside_the_best_fixed_length_in_hindsight(world: str, of_best: float, of_plain: float) -> None:
    """Seeds are fixed, so these are the figures of this code; a worse rule (or none) gives others."""
    sim = simulation()
    draw = random.Random(5)
    texts = [sim.drawn(sim.WORLDS[world], 128, 100, draw) for _ in range(6)]
    end = {name: sim.run(sim.WORLDS[world], policy, texts, 5)[-1] for name, policy in LENGTHS.items()}
    assert min(end.values()) >= of_best * end["breakeven"]
    assert end["plain"] >= of_plain * end["breakeven"]


LENGTHS = {"breakeven": Breakeven()} | {"plain": Fixed(0)} | {f"fixed {n}": Fixed(n) for n in (1, 2, 3, 5, 8)}


@pytest.mark.parametrize("n", [0, 1, 2.5, 3])
def test_what_is_foreseen_of_a_round(n: float) -> None:
    """One token, and the chance of each that is drafted, a part of one for a part of a token; what was refused lowers it."""
    account = Breakeven().init(None)
    chances = [chance(account.ahead, (1.0, 0.0, math.log1p(i), account.recent)) for i in range(3)]
    survival = [math.prod(chances[: i + 1]) for i in range(3)]
    assert Breakeven().foreseen(account, n) == pytest.approx(1 + sum(min(1, max(0, n - i)) * part for i, part in enumerate(survival)))
    refused = Breakeven().update(account._replace(started=True), drafted(3, 0, 0.1, 0.1))
    assert Breakeven().foreseen(refused, 3) < Breakeven().foreseen(account, 3)
