"""Replay against the engine: the recorded rounds come out as they were, and nothing is called exact that decoding does otherwise."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import pytest
from tables import PROMPT, pair

from draftwise import catalog
from draftwise.backends.hf import HF
from draftwise.bench.replay import Grade, Played, play
from draftwise.bench.tape import Tape, finish, record
from draftwise.bench.trace import Trace
from draftwise.catalog import Context
from draftwise.engine import Engine
from draftwise.sequence import Method
from draftwise.types import Round, Sampling

LENGTHS = catalog.names("length")
ACCEPTS = [*catalog.names("accept"), "adasd:base=ratio", "adasd:version=2"]
GREEDY, WARM = {"temperature": 0.0}, {"temperature": 0.7}


class Run(NamedTuple):
    trace: Trace
    method: Method
    rounds: list[Round]
    tokens: list[int]


def method(context: Context, length: str, accept: str, drafter: str = "draft-model") -> Method:
    return catalog.method("plain", context, length, accept, drafter)


def run(context: Context, length: str, accept: str, drafter: str = "draft-model", prompt: list[int] = PROMPT, **sampling: Any) -> Run:
    """One recorded answer."""
    tape, parts = Tape(), method(context, length, accept, drafter)
    engine = Engine(context.target)
    sequence = engine.add(prompt, Sampling(**{"max_tokens": 60, **sampling}), record(parts, tape))
    list(engine.stream())
    return Run(finish(tape, sequence), parts, [r for r in sequence.rounds if r.emitted], sequence.tokens[sequence.prompt :])


def counts(rounds: Any) -> list[tuple[int, int, int, int, int, bool]]:
    return [(r.drafted, r.depth, r.accepted, r.relaxed, r.emitted, r.finished) for r in rounds]


def check_exact(played: Played, real: list[Round]) -> int:
    """All rounds that are called exact are those of a real run; how many there are."""
    exact = [i for i, grade in enumerate(played.grades) if grade is Grade.EXACT]
    found, wanted = counts(played.rounds), counts(real)
    for i in exact:
        assert i < len(wanted)
        assert found[i] == wanted[i], (i, found[: i + 1], wanted[: i + 1])
    return len(exact)


@pytest.mark.parametrize("sampling", [GREEDY, WARM, {"temperature": 0.9, "top_p": 0.8}], ids=["greedy", "T0.7", "top-p"])
@pytest.mark.parametrize(("length", "accept"), list(itertools.product(LENGTHS, ACCEPTS)))
def test_a_trace_gives_its_own_rounds_again(length: str, accept: str, sampling: dict[str, float]) -> None:
    for seed in range(3):
        found = run(pair(seed=seed), length, accept, seed=seed, stop_ids=(7,), **sampling)
        played = play(found.trace, found.method.length, found.method.accept)
        assert counts(played.rounds) == counts(found.rounds)
        assert set(played.grades) == {Grade.EXACT}
        assert played.left is None


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize(("recorded", "other"), list(itertools.product(["fixed:n=8", "gammatune", "adasd"], [*LENGTHS, "fixed:n=0", "fixed:n=14"])))
def test_exact_rounds_of_another_length_are_those_of_a_real_run(recorded: str, other: str, temperature: float) -> None:
    exact = 0
    for seed, accept in itertools.product(range(4), ["speculative", "coupled"]):
        sampling = {"temperature": temperature, "seed": seed, "stop_ids": (6,) if seed % 2 else ()}
        found = run(pair(seed=seed), recorded, accept, **sampling)
        real = run(pair(seed=seed), other, accept, **sampling)
        exact += check_exact(play(found.trace, real.method.length, real.method.accept), real.rounds)
    assert exact


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize(("recorded", "other"), list(itertools.product(ACCEPTS, ACCEPTS)))
def test_exact_rounds_of_another_rule_are_those_of_a_real_run(recorded: str, other: str, temperature: float) -> None:
    if temperature and (recorded == "coupled") != (other == "coupled"):
        pytest.skip("they draw different drafts")
    for seed, (first, second) in itertools.product(range(4), [("fixed:n=6", "fixed:n=6"), ("fixed:n=6", "adasd"), ("adasd", "gammatune")]):
        sampling = {"temperature": temperature, "seed": seed, "stop_ids": (6,) if seed % 2 else ()}
        found = run(pair(seed=seed), first, recorded, **sampling)
        real = run(pair(seed=seed), second, other, **sampling)
        check_exact(play(found.trace, real.method.length, real.method.accept), real.rounds)


@pytest.mark.parametrize("length", LENGTHS)
def test_greedy_lossless_lengths_are_exact_to_the_end(length: str) -> None:
    """What a draft model would have proposed is known at every place of the text."""
    for seed in range(5):
        found, real = run(pair(seed=seed), "fixed:n=5", "speculative"), run(pair(seed=seed), length, "coupled")
        played = play(found.trace, real.method.length, real.method.accept)
        assert played.left is None
        ours, theirs = ([c[2:] for c in counts(rounds)] for rounds in (played.rounds, real.rounds))
        assert ours == theirs  # how much was drafted in vain may be an estimate
