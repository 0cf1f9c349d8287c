"""Best of: the choices of a scripted run, with literal figures; what the text answers for parts that were not asked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch

from draftwise.methods.best_of import BestOf, agreed
from draftwise.methods.breakeven import Breakeven
from draftwise.methods.fixed import Fixed
from draftwise.methods.gammatune import GammaTune
from draftwise.methods.meter import Counted, Meter
from draftwise.noise import Noise
from draftwise.protocols import Ask
from draftwise.types import Draft, DraftStep, Now, Outcome, Round, Rows, Sampling, Text


class Scripted:
    """Proposes what it is told to, up to as many as asked for."""

    taps: tuple[int, ...] = ()
    learns_rows = False

    def __init__(self, name: str, model: bool, script: Callable[[Sequence[int]], list[int]], clock: list[float] | None = None) -> None:
        self.name, self.has_logits, self.script, self.clock = name, model, script, clock
        self.backend = object() if model else None
        self.asked: list[int] = []
        self.unread = 1

    def lag(self, text: Text) -> int:
        return self.unread

    def propose(self, asks: Sequence[Ask]) -> list[Draft]:
        self.asked += [ask.n for ask in asks]
        if self.clock:
            self.clock[0] += 0.5
        return [Draft(torch.tensor(self.script(ask.text.tokens)[: ask.n], dtype=torch.int64), origin=self.name) for ask in asks]

    def observe(self, text: Text, draft: Draft, outcome: Outcome) -> None:
        pass

    def free(self, text: Text) -> None:
        pass


class Run:
    """One text, round by round. The target writes 0, 1, 2, 3, ..."""

    def __init__(self, drafter: BestOf) -> None:
        self.drafter, self.tokens = drafter, [0]
        self.text = Text(1, 0, self.tokens, Sampling(), Noise(1))

    def round(self, n: int = 9) -> str:
        (draft,) = self.drafter.propose([Ask(self.text, n)])
        right = next((i for i, token in enumerate(draft.tokens.tolist()) if token != len(self.tokens) + i), len(draft.tokens))
        self.tokens += range(len(self.tokens), len(self.tokens) + right + 1)
        rows = Rows(torch.zeros(1, 1), {})
        self.drafter.observe(self.text, draft, Outcome([*range(right)], self.tokens[-1], (), 0, rows, fed=len(draft.tokens) + 1))
        return draft.origin if len(draft.tokens) else "plain"


def counting(n: int, wrong: bool = False) -> Callable[[Sequence[int]], list[int]]:
    return lambda tokens: [-1 if wrong else len(tokens) + i for i in range(n)]


def made(copies: Scripted, model: Scripted, length: object = None, **options: float) -> BestOf:
    return BestOf([copies, model], length or Fixed(3), meter=Counted([True, False], 0.25), **{"explore": 0.0, "decay": 0.5, **options})


def test_a_model_that_disappoints_gives_way_to_plain_decoding() -> None:
    """A pass is 1, a draft step 0.25: three tokens cost 1.75. Hoped for: 4 tokens; after two refused rounds 2.5 / 1.75 = 1.43."""
    run = Run(made(Scripted("copies", False, counting(0)), Scripted("model", True, counting(3, wrong=True))))
    assert run.drafter.worth(run.text, 1, 3) == (4.0, 1.75)
    assert run.round() == "model"
    assert run.drafter.worth(run.text, 1, 3) == (2.0, 1.75)  # (1 + 0.5 * 4) / (1 + 0.5)
    assert run.round() == "model"
    assert run.drafter.worth(run.text, 1, 3) == (pytest.approx(2.5 / 1.75), 1.75)
    assert [run.round() for _ in range(3)] == ["plain"] * 3


def test_trials_lose_no_more_than_their_share() -> None:
    """As above with an account: 0.1 of 1.75 twice, then 0.1 a round; a trial is expected to lose 1.75 - 1.43 = 0.32, which is there at once. The next
    is expected to lose 1.75 - 1.2: after the round that brings the account from 0.13 to 0.55."""
    run = Run(made(Scripted("copies", False, counting(0)), Scripted("model", True, counting(3, wrong=True)), explore=0.1))
    rounds = [run.round() for _ in range(12)]
    assert rounds[:3] == ["model"] * 3
    assert rounds[3:8] == ["plain"] * 4 + ["model"]
    assert rounds.count("model") == 4
    never = Run(made(Scripted("copies", False, counting(0)), Scripted("model", True, counting(3, wrong=True))))
    assert [never.round() for _ in range(40)].count("model") == 2


def test_what_nobody_asked_for_is_read_against_the_text() -> None:
    """The copies are right for two tokens and then wrong, while the model drafts; their own GammaTune goes 4 -> 4 * 0.8 + 2 * 0.2 = 3.6 -> 4."""

    def two(tokens: Sequence[int]) -> list[int]:
        return [len(tokens), len(tokens) + 1, -1, -1]

    model = Scripted("model", True, counting(9))
    run = Run(made(Scripted("copies", False, two), model, GammaTune(), explore=0.0))
    run.drafter._playing(run.text).tallies[0].add(1.0, 4.0, 1.0)  # what was learnt: they bring one token
    assert run.round() == "model"
    tally = run.drafter._playing(run.text).tallies[0]
    assert (tally.rounds, tally.tokens, tally.drafted) == (1.5, 3 + 0.5, 4 + 2.0)
    assert not run.drafter._playing(run.text).open
    assert run.drafter._own.states[1][0].g == pytest.approx(3.6)
    assert run.drafter._own.states[1][1].n == 6  # all of the model's four were accepted


class Believing:
    """Takes what a drafter says of its tokens for the truth."""

    per_token, rowless = True, True

    def init(self, last: object) -> None:
        return None

    def budget(self, state: None, now: Now) -> int:
        return 3

    def more(self, state: None, now: Now, steps: Sequence[DraftStep]) -> bool:
        return True

    def update(self, state: None, round: Round) -> None:
        return None

    def expected(self, state: None, steps: Sequence[DraftStep]) -> float:
        return 1 + sum(math.prod(step.prob for step in steps[: i + 1]) for i in range(len(steps)))


class Sure(Scripted):
    """Says how sure it is of each token: `probs`, one after the other, for its rounds."""

    def __init__(self, probs: Sequence[float], n: int) -> None:
        super().__init__("copies", False, counting(n))
        self.probs = iter(probs)

    def propose(self, asks: Sequence[Ask]) -> list[Draft]:
        prob = next(self.probs)
        return [one._replace(steps=tuple(DraftStep(i, 0, prob, prob, 0.0, 0.0) for i in range(len(one.tokens)))) for one in super().propose(asks)]


def test_an_offer_is_weighed_by_what_it_says_of_itself() -> None:
    """A pass is 1. Two tokens of 0.9 bring 2.71 for 1, three of the model's 4 for 1.75: 2.29; two of 0.5 bring 1.75."""
    model = Scripted("model", True, counting(3))
    assert Run(made(Sure([0.9], 2), model, Believing())).round() == "copies"
    assert Run(made(Sure([0.5], 2), model, Believing())).round() == "model"


def test_an_offer_that_would_lose_is_not_made_and_learnt_from() -> None:
    """Where a row more costs half a pass, a token of 0.4 brings 1.4 for 1.5."""
    copies = Sure([0.4, 0.6], 1)
    drafter = made(copies, Scripted("model", True, counting(0)), Believing())
    drafter.meter.round = lambda i, drafted, leaves=0: 1 + 0.5 * drafted if i == 0 else 9.0  # type: ignore[method-assign]
    run = Run(drafter)
    assert run.round() == "plain"
    tally = run.drafter._playing(run.text).tallies[0]
    assert (tally.tokens, tally.rounds) == (2 + 0.5 * 2, 1.5)  # it was right, as hoped for
    assert run.round() == "copies"


def test_a_proposal_waits_until_the_text_has_answered() -> None:
    copies = Scripted("copies", False, counting(3))
    run = Run(made(copies, Scripted("model", True, counting(1)), Fixed(3)))
    playing = run.drafter._playing(run.text)
    playing.tallies[0].add(1.0, 3.0, 1.0)
    assert run.round() == "model"  # brings two tokens: two of the three copies are known to be right
    assert playing.open[0][0] == 1
    assert run.drafter.worth(run.text, 0, 3)[0] == 1.0
    assert run.round() == "model"
    assert run.drafter.worth(run.text, 0, 3)[0] == pytest.approx((4 + 0.5) / 1.5)
    assert run.round() == "copies"
    run.drafter.free(run.text)
    assert not run.drafter._texts


def test_reading_up_counts_whole_for_a_trial_and_spread_for_a_choice() -> None:
    model = Scripted("model", True, counting(3))
    drafter = made(Scripted("copies", False, counting(0)), model, horizon=16)
    text = Text(1, 0, [0], Sampling(), Noise(1))
    model.unread = 513
    assert drafter.worth(text, 1, 3) == (4.0, 1.75 + 512 * 0.25 / 8 / 16)
    assert drafter.worth(text, 1, 3, spread=1) == (4.0, 1.75 + 512 * 0.25 / 8)
    assert Run(drafter).round() == "model"
    model.unread = 5001
    assert Run(made(Scripted("copies", False, counting(0)), model)).round() == "plain"  # the text is too long to read for that


def test_times_are_measured() -> None:
    clock = [0.0]
    meter = Meter([True, False], clock=lambda: clock[0])
    drafter = BestOf([Scripted("copies", False, counting(0)), Scripted("model", True, counting(2), clock)], Fixed(2), meter=meter)
    text = Text(1, 0, [0], Sampling(), Noise(1))
    (draft,) = drafter.propose([Ask(text, 9)])
    clock[0] += 2.0
    drafter.observe(text, draft, Outcome([0], 9, (), 0, Rows(torch.zeros(1, 1), {}), fed=3))
    assert (meter.costs(1), meter.reads) == ((0.25, ((3, 2.0),)), {})
    assert meter.round(1, 2) == 2.5
    with meter.drafting(1, 100) as timed:
        clock[0] += 10.5
        timed.steps = 2
    assert meter.read(1) == pytest.approx(0.1)
    clock[0] += 1.5
    assert meter.verified(200, 3) == 2.0  # a prompt is no pass over a draft
    assert meter.passes.curve == ((3, 2.0), (200, 14.0))


def test_agreed() -> None:
    chain = Draft(torch.tensor([5, 6, 7]))
    assert agreed(chain, [5, 6]) == ([0, 1], False)
    assert agreed(chain, [5, 6, 7]) == ([0, 1, 2], True)
    assert agreed(chain, [5, 8]) == ([0], True)
    assert agreed(chain, []) == ([], False)
    tree = Draft(torch.tensor([5, 6, 7, 8]), parents=torch.tensor([-1, -1, 1, 2]))
    assert agreed(tree, [6, 7]) == ([1, 2], False)
    assert agreed(tree, [6, 7, 8, 9]) == ([1, 2, 3], True)
    assert agreed(tree, [5, 7]) == ([0], True)
    assert agreed(tree, [4]) == ([], True)


NOTHING_FOUND = Scripted("copies", False, counting(0))


def test_breakeven_learns_by_the_costs_that_the_choice_measures() -> None:
    """A pass is 1 at any width and a draft step 0.25: a draft that is always right is worth its cap, one that is always wrong is left alone but for
    a probe now and then, which costs less than one percent of the passes after the first hundred rounds."""
    right = Run(made(NOTHING_FOUND, Scripted("model", True, counting(9)), Breakeven(cap=8)))
    rounds = [right.round() for _ in range(60)]
    assert rounds[0] == "plain" and rounds[-20:] == ["model"] * 20
    assert right.drafter.parts[1].asked[-1] == 8
    wrong = Run(made(NOTHING_FOUND, Scripted("model", True, counting(9, wrong=True)), Breakeven(cap=8)))
    rounds = [wrong.round() for _ in range(600)]
    assert "model" in rounds[:20]
    assert 0.25 * sum(wrong.drafter.parts[1].asked) / 600 < 0.02
    assert 0.25 * rounds[100:].count("model") / 500 < 0.01


def test_a_copy_that_is_right_is_taken_before_a_model_that_is() -> None:
    both = Run(made(Scripted("copies", False, counting(6)), Scripted("model", True, counting(6)), Breakeven()))
    assert [both.round() for _ in range(40)][-20:] == ["copies"] * 20


def test_what_a_text_taught_the_next_one_knows() -> None:
    drafter = made(NOTHING_FOUND, Scripted("model", True, counting(9)), Breakeven(cap=8))
    first = Run(drafter)
    for _ in range(60):
        first.round()
    drafter.free(first.text)
    second = Run(drafter)
    second.text = first.text._replace(id=2, tokens=second.tokens)
    assert [second.round() for _ in range(3)].count("model") >= 2


def test_a_bad_start_does_not_end_what_earlier_texts_say() -> None:
    """Four rounds refused, then all right again: after a text that taught that the model is right it is still asked, and without one it rests."""

    def late(tokens: Sequence[int]) -> list[int]:
        return [len(tokens) + i if len(tokens) > 8 else -1 for i in range(9)]

    def rounds(taught: bool) -> list[str]:
        model = Scripted("model", True, counting(9))
        drafter = made(NOTHING_FOUND, model, Breakeven(cap=8))
        first = Run(drafter)
        for _ in range(60 if taught else 4):
            first.round()
        drafter.free(first.text)
        model.script = late
        second = Run(drafter)
        second.text = first.text._replace(id=2, tokens=second.tokens)
        return [second.round() for _ in range(30)]

    assert rounds(True)[-15:] == ["model"] * 15
    assert rounds(False).count("model") < 15
