"""Trees in the engine: which parts go together, and what a round tells of a tree."""

from __future__ import annotations

import re

import pytest
import torch

from draftwise import catalog
from draftwise.backends.table import Table
from draftwise.bench.replayed import policy, replay
from draftwise.bench.tape import Tape, finish, proposes_trees, record
from draftwise.engine import Engine
from draftwise.methods.cascade import Cascade
from draftwise.methods.ears import EARS
from draftwise.methods.fixed import Fixed
from draftwise.methods.gammatune import GammaTune
from draftwise.methods.speculative import Speculative
from draftwise.rounds import judged
from draftwise.sequence import Method
from draftwise.stats import summarize
from draftwise.trees import children, deepest, judges, levels, walk
from draftwise.types import Draft, DraftStep, Round, Sampling
from forest import Forest
from tables import PROMPT, pair, run

FOREST = torch.tensor([-1, 0, 0, -1, 3, 2])


class ChainsOnly(Table):
    trees = False


def test_a_tree_drafter_with_a_rule_for_chains_is_refused_and_told_which_rules_know_trees() -> None:
    engine, drafter = Engine(Table(8)), Forest(Table(8), (2, 2))
    with pytest.raises(ValueError, match="Forest proposes trees, and EARS judges chains only") as caught:
        engine.add(PROMPT, Sampling(), Method(Fixed(3), EARS(), drafter))
    knowing = {name for name in catalog.names("accept") if catalog.create("accept", name).trees}
    assert knowing == {name for name in catalog.names("accept") if re.search(rf"\b{name}\b", str(caught.value).split(":")[1])} - {"budget"}
    for name in knowing:
        engine.add(PROMPT, Sampling(), Method(Fixed(3), catalog.create("accept", name), drafter))


def test_a_target_that_reads_chains_only_is_refused_with_a_tree_drafter() -> None:
    drafter = Forest(Table(8), (2, 2))
    with pytest.raises(ValueError, match="Forest proposes trees, and this target reads chains only"):
        Engine(ChainsOnly(8)).add(PROMPT, Sampling(), Method(Fixed(3), Speculative(), drafter))


def test_a_cascade_refuses_what_its_level_cannot_judge() -> None:
    drafter = Forest(Table(8), (2, 2))
    for backend, rule in ((Table(8), EARS()), (ChainsOnly(8), Speculative())):
        with pytest.raises(ValueError, match="Forest proposes trees"):
            Cascade(backend, 8, drafter, Fixed(2), rule)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_cascade_over_a_tree_drafts_chains(temperature: float) -> None:
    context = pair()
    cascade = Cascade(context.draft, 8, Forest(Table(8, twist=0.8), (2, 2)), Fixed(2), Speculative())
    engine = Engine(context.target)
    sequence = engine.add(PROMPT, Sampling(temperature=temperature, max_tokens=30), Method(Fixed(4), Speculative(), cascade))
    list(engine.stream())
    assert all(r.depth == r.drafted for r in sequence.rounds)
    if not temperature:
        assert sequence.tokens[len(PROMPT) :] == run(context, "plain", max_tokens=30)


def test_budgets_count_levels_and_so_does_all_accepted() -> None:
    target = Table(8)
    engine = Engine(target)
    sequence = engine.add(PROMPT, Sampling(max_tokens=60), Method(GammaTune(start=2), Speculative(), Forest(Table(8), (2,) * 5, "likeliest")))
    list(engine.stream())
    rounds = [r for r in sequence.rounds if r.drafted]
    assert [(r.drafted, r.depth, r.accepted) for r in rounds[:2]] == [(6, 2, 2), (30, 4, 4)]  # all accepted: two levels more
    assert all(r.accepted == r.depth for r in rounds)
    assert engine.costs[id(sequence.method.drafter)][1].draft_s > 0


def test_the_acceptance_rate_is_of_levels() -> None:
    rounds = [Round(6, 2, 2, 0, 3, 1, 7, 0.1, 0.1), Round(6, 2, 1, 0, 2, 1, 7, 0.1, 0.1)]
    found = summarize(rounds, 1.0)
    assert (found.drafted, found.levels, found.accepted, found.acceptance_rate, found.by_position) == (12, 4, 3, 0.75, (1.0, 0.5))


def test_no_trace_is_taken_of_trees() -> None:
    with pytest.raises(ValueError, match="a trace holds chains, and Forest proposes trees: such an answer cannot be replayed"):
        record(Method(Fixed(3), Speculative(), Forest(Table(8), (2, 2))), Tape())
    record(catalog.method("fixed", pair()), Tape())


def test_a_method_of_trees_is_not_replayed_from_chains() -> None:
    context, tape = pair(), Tape()
    engine = Engine(context.target)
    sequence = engine.add(PROMPT, Sampling(max_tokens=20), record(catalog.method("fixed", context), tape))
    list(engine.stream())
    (answer,) = replay([finish(tape, sequence, {})], [policy("draft-tree")])
    assert answer.refused == "its drafter is draft-tree, and draft-model drafted this trace"


def test_which_methods_propose_trees() -> None:
    context = pair()
    assert [proposes_trees(catalog.method(name, context)) for name in ("draft-tree", "fixed", "plain")] == [True, False, False]


def test_the_steps_of_a_tree_are_those_that_were_judged() -> None:
    steps = tuple(DraftStep(i, 10 + i, 0.5, 0.6, 0.1, 1.0) for i in range(6))
    draft = Draft(torch.arange(10, 16), None, None, FOREST, steps)
    assert [(s.index, s.token) for s in judged(draft, [])] == [(0, 10)]
    assert [(s.index, s.token) for s in judged(draft, [3])] == [(0, 13), (1, 14)]
    assert [s.token for s in judged(draft, [0, 2, 5])] == [10, 12, 15]
    assert judged(draft._replace(steps=()), [0]) == ()
    assert judged(draft._replace(parents=None), [0]) == steps


def test_walks() -> None:
    below = children(FOREST, 6)
    assert below == [[1, 2], [], [5], [4], [], [], [0, 3]]
    assert children(None, 3) == [[1], [2], [], [0]]
    assert [levels(FOREST, 6), levels(None, 4), levels(FOREST[:0], 0)] == [3, 4, 0]
    assert judges(FOREST, 6).tolist() == [0, 1, 1, 0, 4, 3]
    asked: list[int] = []
    assert walk(below, lambda i: bool(asked.append(i)) or i in (0, 2)) == [0, 2]
    assert asked == [0, 1, 2, 5]
    assert walk(below, lambda _: False) == []
    assert deepest(below, lambda i: i != 2, lambda i: float(i)) == [3, 4]
    assert deepest(below, lambda i: i != 0, lambda _: 0.0) == [3, 4]
    assert deepest(below, lambda i: True, lambda _: 0.0) == [0, 2, 5]
    assert deepest(below, lambda i: False, lambda _: 0.0) == []
