"""Replay against the engine: the recorded rounds come out as they were, and nothing is called exact that decoding does otherwise."""

from __future__ import annotations

import functools
import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import tiny
from draftwise import catalog
from draftwise.backends.hf import HF
from draftwise.bench.recorded import Missing
from draftwise.bench.replay import Grade, Played, play
from draftwise.bench.replay_costs import Costs
from draftwise.bench.replayed import Policy, policy, replay
from draftwise.bench.tape import Tape, finish, record
from draftwise.bench.trace import Trace, load, save
from draftwise.commands import replay as commands
from draftwise.commands.errors import Guarded
from draftwise.context import Context
from draftwise.engine import Engine
from draftwise.methods.draft_model import DraftModel
from draftwise.methods.none import NoDraft
from draftwise.methods.prompt_lookup import PromptLookup
from draftwise.sequence import Method
from draftwise.types import Now, Round, Sampling
from tables import PROMPT, pair

DATA = Path(__file__).parent / "data"
LENGTHS = catalog.names("length")
UNTIMED = [name for name in LENGTHS if name != "breakeven"]  # which looks at seconds, and no other run has the same
OFTEN = {"fly": "fly:window=2", "budget": "budget:tv=0.3"}  # with their defaults they would relax nothing in texts as short as these
ACCEPTS = [*(OFTEN.get(name, name) for name in catalog.names("accept")), "adasd:base=ratio", "adasd:version=2"]
GREEDY, WARM = {"temperature": 0.0}, {"temperature": 0.7}


class Run(NamedTuple):
    trace: Trace
    method: Method
    rounds: list[Round]
    tokens: list[int]


@functools.cache
def part(kind: str, spec: str) -> Any:
    return catalog.create(kind, spec)


def run(context: Context, length: str, accept: str, drafter: Any = None, prompt: list[int] = PROMPT, **sampling: Any) -> Run:
    """One recorded answer."""
    parts = Method(part("length", length), part("accept", accept), drafter or DraftModel(context.draft, context.vocab_size))
    tape, engine = Tape(), Engine(context.target)
    sequence = engine.add(prompt, Sampling(**{"max_tokens": 40, **sampling}), record(parts, tape))
    list(engine.stream())
    return Run(finish(tape, sequence), parts, [r for r in sequence.rounds if r.emitted], sequence.tokens[sequence.prompt :])


@functools.cache
def answer(length: str, accept: str, temperature: float, seed: int, top_p: float = 1.0) -> Run:
    """An answer of a pair of tables; every other seed has a stop id."""
    return run(tables(seed), length, accept, temperature=temperature, top_p=top_p, seed=seed, stop_ids=(6,) if seed % 2 else ())


@functools.cache
def tables(seed: int) -> Context:
    return pair(seed=seed)


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


@pytest.mark.parametrize(("temperature", "top_p"), [(0.0, 1.0), (0.7, 1.0), (0.9, 0.8)])
@pytest.mark.parametrize(("length", "accept"), list(itertools.product(LENGTHS, ACCEPTS)))
def test_a_trace_gives_its_own_rounds_again(length: str, accept: str, temperature: float, top_p: float) -> None:
    for seed in range(2):
        found = answer(length, accept, temperature, seed, top_p)
        played = play(found.trace, found.method.length, found.method.accept)
        assert counts(played.rounds) == counts(found.rounds)
        assert set(played.grades) == {Grade.EXACT}
        assert played.left is None


@pytest.mark.parametrize("accept", ACCEPTS)
def test_every_lossy_rule_relaxes_in_these_runs(accept: str) -> None:
    """Else its replays would prove nothing. EARS needs a temperature: of a one-hot law there is nothing to be unsure about."""
    for temperature in (0.7,) if accept == "ears" else (0.0, 0.7):
        rounds = [r for length in ("fixed:n=8", "adasd") for seed in range(2) for r in answer(length, accept, temperature, seed).rounds]
        assert (sum(r.relaxed for r in rounds) > 0) is not catalog.create("accept", accept).lossless


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("other", [*UNTIMED, "fixed:n=0", "fixed:n=14"])
@pytest.mark.parametrize("recorded", ["fixed:n=8", "gammatune", "adasd"])
def test_exact_rounds_of_another_length_are_those_of_a_real_run(recorded: str, other: str, temperature: float) -> None:
    exact = 0
    for seed, accept in itertools.product(range(2), ["speculative", "coupled"]):
        found, real = answer(recorded, accept, temperature, seed), answer(other, accept, temperature, seed)
        exact += check_exact(play(found.trace, real.method.length, real.method.accept), real.rounds)
    assert exact


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("other", ACCEPTS)
@pytest.mark.parametrize("recorded", ACCEPTS)
def test_exact_rounds_of_another_rule_are_those_of_a_real_run(recorded: str, other: str, temperature: float) -> None:
    if temperature and (recorded == "coupled") != (other == "coupled"):
        pytest.skip("they draw different drafts")
    for seed, (first, second) in itertools.product(range(2), [("fixed:n=8", "fixed:n=8"), ("fixed:n=8", "adasd"), ("adasd", "gammatune")]):
        found, real = answer(first, recorded, temperature, seed), answer(second, other, temperature, seed)
        check_exact(play(found.trace, real.method.length, real.method.accept), real.rounds)


@pytest.mark.parametrize("length", [name for name in UNTIMED if name != "adaedl"])  # whose state counts what was drafted in vain
def test_greedy_lossless_lengths_are_exact_to_the_end(length: str) -> None:
    """What a draft model would have proposed is known at every place of the text."""
    for seed in range(3):
        found, real = answer("fixed:n=8", "speculative", 0.0, seed), answer(length, "coupled", 0.0, seed)
        played = play(found.trace, real.method.length, real.method.accept)
        assert played.left is None
        ours, theirs = ([c[2:] for c in counts(rounds)] for rounds in (played.rounds, real.rounds))
        assert ours == theirs  # how much was drafted in vain may be an estimate


def test_a_state_that_counts_what_is_unknown_leaves_the_path() -> None:
    """AdaEDL divides by the number of drafted tokens, and what it would have drafted after a refused one lies beyond the recorded drafts."""
    found = answer("fixed:n=2", "speculative", 0.0, 0)
    played = play(found.trace, part("length", "adaedl:threshold=0"), found.method.accept)
    assert played.left is not None


def test_a_shorter_draft_is_a_draw_of_the_same_law() -> None:
    """Above temperature 0: over many seeds, rounds of real runs and of replays of longer drafts come out alike, down to chance."""
    context = pair(vocab=5, twist=1.0)
    taken: list[list[int]] = [[], []]
    for seed in range(20):
        found = run(context, "fixed:n=5", "speculative", temperature=0.9, seed=seed, max_tokens=24)
        for length in ("fixed:n=3", "fixed:n=7"):
            real = run(context, length, "speculative", temperature=0.9, seed=1000 + seed, max_tokens=24)
            played = play(found.trace, real.method.length, real.method.accept)
            assert played.left is None
            assert Grade.ESTIMATE not in played.grades[:1]
            taken[0].append(len(real.rounds))
            taken[1].append(len(played.rounds))
    mean, error = np.mean(taken, axis=1), np.std(taken, axis=1, ddof=1) / len(taken[0]) ** 0.5
    assert abs(mean[0] - mean[1]) < 4 * math.hypot(*error)


def test_lookup_is_known_where_its_rounds_began() -> None:
    found = run(tables(0), "fixed:n=4", "speculative", PromptLookup())
    assert play(found.trace, found.method.length, found.method.accept).left is None
    shorter = run(tables(0), "fixed:n=2", "speculative", PromptLookup())
    assert check_exact(play(found.trace, shorter.method.length, shorter.method.accept), shorter.rounds)
    with pytest.raises(Missing, match="confidence"):
        play(found.trace, part("length", "svip"), found.method.accept)
    with pytest.raises(Missing, match="rows"):
        play(found.trace, found.method.length, part("accept", "adasd"))


def test_rules_that_a_trace_cannot_answer() -> None:
    warm, greedy = answer("fixed", "speculative", 0.7, 0), answer("fixed", "speculative", 0.0, 0)
    with pytest.raises(Missing, match="coupled"):
        play(warm.trace, warm.method.length, part("accept", "coupled"))
    assert play(greedy.trace, greedy.method.length, part("accept", "coupled")).left is None
    plain = run(tables(0), "fixed:n=0", "coupled", NoDraft())
    assert check_exact(play(warm.trace, plain.method.length, plain.method.accept), []) == 0  # drawn, since the noise is another
    assert check_exact(play(greedy.trace, plain.method.length, plain.method.accept), plain.rounds) == len(plain.rounds)
    with pytest.raises(Missing, match="nothing was drafted"):
        play(plain.trace, greedy.method.length, greedy.method.accept)
    with pytest.raises(ValueError, match="decide"):
        play(greedy.trace, greedy.method.length, Opaque())


class Opaque:
    """An acceptance rule that only judges."""

    lossless, trees, wants_logits, coupled = True, False, False, False

    def init(self, last: Any) -> int:
        return 0

    def judge(self, *_: Any) -> Any:
        raise AssertionError("a replay has no rows")


@dataclass(frozen=True)
class Thrifty:
    """Drafts by measured times."""

    per_token: ClassVar[bool] = False

    def init(self, last: Any) -> int:
        return 0

    def budget(self, state: int, now: Now) -> int:
        return 3 + len(now.verify_s) % 3

    def more(self, state: int, now: Now, steps: Any) -> bool:
        return True

    def update(self, state: int, round: Round) -> int:
        return state


@dataclass(frozen=True)
class Curious(Thrifty):
    """Drafts by all that a moment tells but for times."""

    def budget(self, state: int, now: Now) -> int:
        return (now.lag * 2 + now.context + now.room * 3 + now.batch) % 6


def test_moments_are_those_of_a_real_run() -> None:
    for seed in range(3):
        found = answer("fixed:n=8", "speculative", 0.0, seed)
        context = tables(seed)
        parts = Method(Curious(), part("accept", "speculative"), DraftModel(context.draft, context.vocab_size))
        engine = Engine(context.target)
        sequence = engine.add(PROMPT, Sampling(max_tokens=40, seed=seed, stop_ids=(6,) if seed % 2 else ()), parts)
        list(engine.stream())
        played = play(found.trace, parts.length, parts.accept)
        assert played.left is None
        assert counts(played.rounds) == counts(r for r in sequence.rounds if r.emitted)


def test_a_policy_that_looks_at_the_clock_is_exact_only_on_its_own_trace() -> None:
    context = tables(0)
    parts = Method(Thrifty(), part("accept", "speculative"), DraftModel(context.draft, context.vocab_size))
    tape, engine = Tape(), Engine(context.target)
    sequence = engine.add(PROMPT, Sampling(max_tokens=40), record(parts, tape))
    list(engine.stream())
    played = play(finish(tape, sequence), parts.length, parts.accept)
    assert counts(played.rounds) == counts(r for r in sequence.rounds if r.emitted)
    assert played.left is None
    assert play(answer("fixed:n=8", "speculative", 0.0, 0).trace, parts.length, parts.accept).left == 0


def test_persisting_policies_are_not_exact_after_other_requests() -> None:
    context = tables(0)
    engine = Engine(context.target)
    for _ in range(2):
        tape = Tape()
        parts = Method(part("length", "heuristic:persist=true"), part("accept", "speculative"), DraftModel(context.draft, context.vocab_size))
        sequence = engine.add(PROMPT, Sampling(max_tokens=40), record(parts, tape))
        list(engine.stream())
    assert play(finish(tape, sequence), parts.length, parts.accept).left == 0


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("spec", ["adasd", "typical", "gammatune-plus", "coupled", "fixed:n=8"])
def test_tiny_transformers_models(spec: str, temperature: float) -> None:
    target, draft = HF(tiny.model("qwen2", 0)), HF(tiny.model("qwen2", 1))
    context = Context(target, draft, target.vocab_size)
    length, accept, _ = catalog.method(spec, context)
    tape, engine = Tape(), Engine(target)
    parts = Method(length, accept, DraftModel(draft, tiny.VOCAB))
    sequence = engine.add([3, 4, 5], Sampling(temperature, max_tokens=24, seed=3), record(parts, tape))
    list(engine.stream())
    played = play(finish(tape, sequence), length, accept)
    assert counts(played.rounds) == counts(r for r in sequence.rounds if r.emitted)
    assert set(played.grades) == {Grade.EXACT}


@pytest.mark.parametrize("name", ["qwen-greedy.npz", "qwen-warm.npz"])
def test_the_shipped_trace_of_a_real_pair(name: str) -> None:
    found = load(DATA / name)
    lists = found.lists
    played = play(found, part("length", "fixed:n=8"), part("accept", "speculative"))
    recorded = [r for r, n in enumerate(lists["emitted"]) if n]
    fields = ("drafted", "depth", "accepted", "relaxed", "emitted", "finished")
    assert counts(played.rounds) == [tuple(lists[field][r] for field in fields) for r in recorded]
    assert set(played.grades) == {Grade.EXACT}
    assert "/" not in json.dumps(dict(found.header))
    answers = replay([found], [policy(name) for name in catalog.names("method")])
    refused = {answer.name for answer in answers if answer.refused}
    parts = {name: catalog.entry("method", name).parts for name in catalog.names("method")}
    others = {name for name, some in parts.items() if some and some[2] not in ("auto", "none", "draft-model")}  # they propose other tokens
    assert refused == (others if found.greedy else others | {"coupled"})
    for answer in answers:
        if answer.summary:
            assert answer.summary.tokens == sum(lists["emitted"]) or answer.exact
            assert answer.exact + answer.drawn + answer.estimated == answer.summary.rounds


def test_costs_are_medians_of_what_was_measured() -> None:
    found = answer("fixed:n=8", "speculative", 0.0, 0).trace
    columns = dict(found.columns)
    columns["draft_s"] = columns["drafted"] * 0.5
    columns["verify_s"] = 1.0 + columns["drafted"] * 0.25
    costs = Costs([Trace(found.header, columns)])
    assert (costs.draft(3), costs.verify(9), costs.measured(9), costs.measured(4)) == (1.5, 3.0, True, False)
    [answered] = replay([Trace(found.header, columns)], [Policy("own", part("length", "fixed:n=8"), part("accept", "speculative"))])
    seconds = float((columns["draft_s"] + columns["verify_s"]).sum())
    assert answered.summary is not None
    assert answered.summary.seconds == pytest.approx(seconds)


def test_traces_of_different_machines_are_replayed_apart() -> None:
    found = answer("fixed", "speculative", 0.0, 0).trace
    others = [Trace({**found.header, "about": {"machine": name}}, found.columns, name) for name in "ab"]
    with pytest.raises(ValueError, match="machine"):
        replay(others, [])


def test_the_command(tmp_path: Path) -> None:
    app = typer.Typer(cls=Guarded)
    app.command()(commands.replay)
    app.command("other")(lambda: None)  # so that it stays a group
    save(tmp_path / "a.npz", answer("fixed:n=8", "adasd", 0.0, 0).trace)
    shown = CliRunner().invoke(app, ["replay", str(tmp_path), "--methods", "adasd,lookup,gammatune:eta=0.3,low=2"])
    assert shown.exit_code == 0, shown.output
    assert "gammatune:eta=0.3,low=2" in shown.output
    assert "lookup cannot be answered: its drafter is prompt-lookup" in shown.output
    asked = CliRunner().invoke(app, ["replay", str(tmp_path / "a.npz"), "--length", "fixed:n=8", "--accept", "adasd", "--json"])
    [only] = json.loads(asked.output)["answers"]
    assert (only["name"], only["estimated"], only["left"]) == ("fixed, length fixed:n=8, accept adasd", 0, [None])
    wrong = CliRunner().invoke(app, ["replay", str(tmp_path), "--methods", "gamatune"])
    assert wrong.exit_code == 2
    assert "did you mean 'gammatune'" in wrong.output


def test_a_policy_that_looks_at_seconds_is_an_estimate_from_its_first_round() -> None:
    found = answer("fixed:n=8", "speculative", 0.0, 0)
    played = play(found.trace, part("length", "breakeven"), found.method.accept)
    assert set(played.grades) == {Grade.ESTIMATE} and played.left == 0
    assert sum(r.emitted for r in played.rounds) == len(found.tokens)
