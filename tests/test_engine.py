"""The engine's promises on the table backend, where every number is exact."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from draftwise import catalog
from draftwise.backends.table import Table
from draftwise.context import Context
from draftwise.engine import Engine
from draftwise.methods.draft_model import DraftModel
from draftwise.methods.fixed import Fixed
from draftwise.methods.speculative import Speculative
from draftwise.probs import BadLogits
from draftwise.sequence import Method
from draftwise.types import Rows, Sampling
from tables import PROMPT, pair, run

METHODS = [{"best-of": "best-of:measure=false"}.get(name, name) for name in catalog.names("method")]  # what a clock decides is not the same twice
LOSSLESS = [name for name in METHODS if catalog.entry("method", name.partition(":")[0]).lossless]


@pytest.mark.parametrize("name", LOSSLESS)
@pytest.mark.parametrize("chunk", [1, 3, 256])
def test_greedy_text_is_the_text_of_plain_decoding(name: str, chunk: int) -> None:
    context = pair()
    assert run(context, name, chunk=chunk, max_tokens=40) == run(context, "plain", max_tokens=40)


@pytest.mark.parametrize("seed", [0, 1, 7])
@pytest.mark.parametrize("truncation", [{}, {"top_p": 0.8}, {"top_k": 3}, {"repetition_penalty": 1.3}])
def test_coupled_keeps_the_tokens_of_plain_decoding_for_the_same_seed(seed: int, truncation: dict[str, float]) -> None:
    context = pair()
    options = {"temperature": 0.9, "seed": seed, "max_tokens": 40, **truncation}
    plain = run(context, "plain", **options)
    assert run(context, "coupled", **options) == plain
    assert len(set(plain)) > 1


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_batch_writes_what_its_requests_write_alone(name: str, temperature: float) -> None:
    context = pair()
    # lengths that hang on seconds, stores that learn from the neighbours: above temperature 0 only this rule's tokens do not hang on the drafts
    shared = "coupled" if name in ("auto", "breakeven", "recycling", "stand", "suffix") else None
    method = catalog.method(name, context, accept=shared)
    prompts = [[1], [2, 3, 4, 5, 6, 7, 0, 1], [5, 5, 5], [7, 1, 7, 1, 7, 1]]
    sampling = Sampling(temperature=temperature, seed=3, max_tokens=25)
    together = Engine(context.target, chunk=4).generate(prompts, sampling, method)
    alone = [Engine(context.target, chunk=4).generate([prompt], sampling, catalog.method(name, pair(), accept=shared))[0] for prompt in prompts]
    assert together == alone


class Fleeting:
    """A table whose rows are gone with its next forward, as a backend's may be."""

    def __init__(self, table: Any) -> None:
        self.table, self.vocab_size, self.max_length = table, table.vocab_size, table.max_length
        self.length, self.keep, self.free = table.length, table.keep, table.free
        self.given: list[torch.Tensor] = []

    def forward(self, feeds: Any) -> list[Rows]:
        for rows in self.given:
            rows.fill_(torch.nan)
        found = [row._replace(logits=row.logits.clone()) for row in self.table.forward(feeds)]
        self.given = [row.logits for row in found]
        return found


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_rows_are_read_before_the_next_forward(name: str, temperature: float) -> None:
    shared = "coupled" if name in ("auto", "breakeven") else None
    sampling, prompts = Sampling(temperature=temperature, seed=3, max_tokens=25), [[1], [2, 3, 4, 5, 6, 7, 0, 1]]
    written = []
    for wrap in (lambda table: table, Fleeting):
        context = pair()
        context = context._replace(target=wrap(context.target), draft=wrap(context.draft))
        written.append(Engine(context.target, chunk=4).generate(prompts, sampling, catalog.method(name, context, accept=shared)))
    assert written[0] == written[1]


def test_requests_of_one_engine_may_ask_for_different_methods() -> None:
    context = pair()
    engine = Engine(context.target)
    greedy = [engine.add(PROMPT, Sampling(max_tokens=20), catalog.method(name, context)) for name in LOSSLESS]
    for _ in engine.stream():
        pass
    assert {tuple(s.tokens) for s in greedy} == {tuple(greedy[0].tokens)}


def test_more_requests_than_slots_wait_in_order_and_all_finish() -> None:
    context = pair()
    engine = Engine(context.target, slots=2)
    sequences = [engine.add([i], Sampling(max_tokens=5), catalog.method("fixed", context)) for i in range(5)]
    finished = [chunk.id for chunk in engine.stream() if chunk.finish_reason]
    assert sorted(finished) == [s.text.id for s in sequences]
    assert finished[:2] != finished[3:]
    assert not context.target.slots
    assert not context.draft.slots


@pytest.mark.parametrize("name", METHODS)
def test_chunks_add_up_to_the_text(name: str) -> None:
    context = pair()
    engine = Engine(context.target)
    sequence = engine.add(PROMPT, Sampling(max_tokens=30, logprobs=True), catalog.method(name, context))
    chunks = list(engine.stream())
    assert [t for c in chunks for t in c.tokens] == sequence.tokens[len(PROMPT) :]
    assert [len(c.tokens) for c in chunks] == [len(c.origins) for c in chunks] == [len(c.logprobs) for c in chunks]
    assert [c.finish_reason for c in chunks] == [None] * (len(chunks) - 1) + ["length"]


def test_the_target_as_its_own_drafter_is_fully_accepted() -> None:
    target = Table(8)
    context = Context(target, Table(8), 8)
    for spec in ("fixed:n=4", "coupled"):
        for temperature in (0.0, 1.0):
            engine = Engine(target)
            sequence = engine.add(PROMPT, Sampling(temperature=temperature, max_tokens=41), catalog.method(spec, context, length="fixed:n=4"))
            list(engine.stream())
            drafts = [r for r in sequence.rounds if r.drafted]
            assert drafts
            assert all(r.accepted == r.drafted for r in drafts), (spec, temperature)


def test_a_round_knows_what_such_rounds_usually_take() -> None:
    """By the engine's own table: of a single round that is what it took itself, of many less than the longest of them."""
    context = pair()
    engine = Engine(context.target)
    sequence = engine.add(PROMPT, Sampling(max_tokens=60), catalog.method("fixed:n=4", context))
    list(engine.stream())
    alike = [r for r in sequence.rounds if (r.drafted, r.rows) == (4, 5)]
    assert len(alike) > 4 and all(r.usual_s > 0 for r in alike)
    assert alike[-1].usual_s <= max(r.draft_s for r in sequence.rounds) + max(r.verify_s for r in sequence.rounds)


def test_a_model_is_fed_every_token_once_when_all_is_accepted() -> None:
    target = Table(8)
    context = Context(target, Table(8), 8)
    run(context, "fixed:n=4", max_tokens=26)
    assert target.fed == len(PROMPT) + 26 - 1
    assert target.forwards == math.ceil(26 / 5)
    assert context.draft.fed <= len(PROMPT) + 26


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 5, 6])
@pytest.mark.parametrize("name", LOSSLESS)
def test_max_tokens_inside_a_draft(name: str, max_tokens: int) -> None:
    context = pair()
    assert run(context, name, max_tokens=max_tokens) == run(context, "plain", max_tokens=20)[:max_tokens]


@pytest.mark.parametrize("name", LOSSLESS)
def test_a_stop_id_inside_a_draft_ends_the_text_with_it(name: str) -> None:
    context = pair()
    plain = run(context, "plain", max_tokens=30)
    stop = plain[7]
    engine = Engine(context.target)
    sequence = engine.add(PROMPT, Sampling(max_tokens=30, stop_ids=(stop,)), catalog.method(name, context))
    chunks = list(engine.stream())
    assert sequence.tokens[len(PROMPT) :] == plain[: plain.index(stop) + 1]
    assert chunks[-1].finish_reason == "stop"
    assert not context.target.slots


def test_the_context_limit_ends_the_text() -> None:
    context = pair(max_length=20)
    for name in LOSSLESS:
        tokens = run(context, name, max_tokens=100)
        assert len(tokens) == 20 - len(PROMPT), name


def test_a_draft_with_a_shorter_context_rests_at_its_end() -> None:
    context = Context(Table(8), Table(8, max_length=12), 8)
    assert run(context, "fixed", max_tokens=40) == run(context, "plain", max_tokens=40)


def test_a_draft_of_another_padded_width() -> None:
    for width in (8, 12):
        target, draft = Table(10), Table(width)
        context = Context(target, draft, 10)
        for temperature in (0.0, 1.0):
            tokens = run(context, "adasd", prompt=[1, 2], temperature=temperature, max_tokens=20)
            assert len(tokens) == 20


def test_a_narrow_draft_reads_texts_with_ids_it_does_not_know() -> None:
    context = Context(Table(12), Table(6), 12)
    for name in ("fixed", "adasd-stop", "coupled"):
        assert run(context, name, prompt=[11, 7, 2], max_tokens=40) == run(context, "plain", prompt=[11, 7, 2], max_tokens=40)


def test_a_draft_that_processors_leave_no_token_is_refused_not_fatal() -> None:
    def high_only(ids, row):  # type: ignore[no-untyped-def]
        return row.masked_fill(torch.arange(len(row)) < 8, -math.inf)

    context = Context(Table(12), Table(6), 12)
    for temperature in (0.0, 1.0):
        tokens = run(context, "fixed", prompt=[11, 7], max_tokens=20, temperature=temperature, processors=(high_only,))
        assert min(tokens) >= 8


def test_cancel_leaves_the_others_alone() -> None:
    context = pair()
    method = catalog.method("fixed", context)
    expected = run(context, "plain", max_tokens=20)
    engine = Engine(context.target, slots=2)
    first, second, third = (engine.add(PROMPT, Sampling(max_tokens=20), method) for _ in range(3))
    engine.step()
    engine.cancel(first.text.id)
    engine.cancel(third.text.id)
    list(engine.stream())
    assert second.tokens[len(PROMPT) :] == expected
    assert len(first.tokens) < len(second.tokens)
    assert third.tokens == PROMPT
    engine.cancel(12345)


class Failing(Table):
    """Fails in its third forward, after it has taken the tokens in."""

    def forward(self, feeds):  # type: ignore[no-untyped-def]
        rows = super().forward(feeds)
        if self.forwards == 3:
            raise KeyboardInterrupt
        return rows


def test_after_an_interrupt_the_same_requests_go_on() -> None:
    expected = run(pair(), "plain", max_tokens=30)
    context = pair()._replace(target=Failing(8))
    engine = Engine(context.target)
    sequence = engine.add(PROMPT, Sampling(max_tokens=30), catalog.method("adasd-stop", context))
    with pytest.raises(KeyboardInterrupt):
        list(engine.stream())
    assert engine.busy
    list(engine.stream())
    assert sequence.tokens[len(PROMPT) :] == expected


def test_an_interrupt_between_two_commits_loses_no_chunk() -> None:
    expected = run(pair(), "plain", max_tokens=8)
    context = pair()
    engine = Engine(context.target)
    sequences = [engine.add(PROMPT, Sampling(max_tokens=8), catalog.method("fixed", context)) for _ in range(3)]
    second = sequences[1].method.drafter
    observe, calls = second.observe, []

    def interrupted(*args: object) -> None:
        calls.append(args)
        if len(calls) in (2, 5):
            raise KeyboardInterrupt
        observe(*args)

    second.observe = interrupted
    chunks = []
    while engine.busy or len(calls) < 6:
        try:
            chunks += engine.step()
        except KeyboardInterrupt:
            continue
        if not engine.busy:
            break
    for sequence in sequences:
        assert [t for c in chunks if c.id == sequence.text.id for t in c.tokens] == sequence.tokens[len(PROMPT) :] == expected


def test_nan_logits_are_named() -> None:
    broken = Table(8)
    broken.rows[(3, 1)] = torch.full((8,), math.nan)
    with pytest.raises(BadLogits, match="NaN"):
        run(Context(broken, Table(8), 8), "fixed", max_tokens=3)


def test_relaxed_and_written_tokens_are_told_apart() -> None:
    context = pair(vocab=16, twist=0.5, order=4)
    engine = Engine(context.target)
    sequence = engine.add(PROMPT, Sampling(max_tokens=400), catalog.method("adasd", context))
    chunks = list(engine.stream())
    origins = [origin for chunk in chunks for origin in chunk.origins]
    assert set(origins) == {"drafted", "relaxed", "target"}
    assert origins.count("relaxed") == sum(r.relaxed for r in sequence.rounds)
    assert origins.count("target") == len(chunks) or chunks[-1].origins[-1] != "target"


def test_relax_is_asked_before_every_lossy_acceptance() -> None:
    context = pair(vocab=16, twist=0.5, order=4)
    engine = Engine(context.target)
    sequence = engine.add(PROMPT, Sampling(max_tokens=100), catalog.method("adasd", context))
    sequence.relax = lambda _: False
    list(engine.stream())
    assert sequence.tokens[len(PROMPT) :] == run(context, "plain", max_tokens=100)
    assert not any(r.relaxed for r in sequence.rounds)


def test_processors_and_penalties_hold_inside_a_draft() -> None:
    def no_repeat(ids, row):  # type: ignore[no-untyped-def]
        row = row.clone()
        row[ids[-1]] = -math.inf
        return row

    context = pair()
    for name in LOSSLESS:
        tokens = run(context, name, max_tokens=30, processors=(no_repeat,), repetition_penalty=1.2)
        assert tokens == run(context, "plain", max_tokens=30, processors=(no_repeat,), repetition_penalty=1.2)
        assert all(a != b for a, b in zip([PROMPT[-1], *tokens], tokens, strict=False))


def test_a_policy_gets_the_state_of_the_sequence_that_finished_last() -> None:
    seen = []

    class Watching:
        per_token = False

        def init(self, last):  # type: ignore[no-untyped-def]
            seen.append(last)
            return 0

        def budget(self, state, now):  # type: ignore[no-untyped-def]
            return 2

        def more(self, state, now, steps):  # type: ignore[no-untyped-def]
            raise AssertionError

        def update(self, state, round):  # type: ignore[no-untyped-def]
            return state + 1

    context = pair()
    engine = Engine(context.target)
    method = Method(Watching(), Speculative(), DraftModel(context.draft, 8))
    engine.generate([PROMPT], Sampling(max_tokens=12), method)
    engine.generate([PROMPT], Sampling(max_tokens=12), method)
    assert seen[0] is None
    assert seen[1] > 0


def test_now_tells_what_the_engine_measured() -> None:
    seen = []

    class Watching(Fixed):
        def budget(self, state, now):  # type: ignore[no-untyped-def]
            seen.append(now)
            return 3

    context = pair()
    Engine(context.target).generate([PROMPT], Sampling(max_tokens=30), Method(Watching(), Speculative(), DraftModel(context.draft, 8)))
    assert seen[0].lag == len(PROMPT)
    assert seen[0].context == len(PROMPT)
    assert seen[0].room == 29
    assert seen[-1].draft_s > 0
    assert dict(seen[-1].verify_s)[4] > 0


@pytest.mark.parametrize(
    ("prompt", "spec", "message"),
    [
        ([], "plain", "prompt is empty"),
        ([1] * 64, "plain", "no room"),
        ([1, 99], "plain", "outside the model's vocabulary"),
    ],
)
def test_bad_prompts_are_refused_in_a_sentence(prompt: list[int], spec: str, message: str) -> None:
    context = pair(max_length=64)
    with pytest.raises(ValueError, match=message):
        Engine(context.target).add(prompt, Sampling(), catalog.method(spec, context))


def test_parts_that_do_not_fit_are_refused_when_added() -> None:
    context = pair()
    engine = Engine(context.target)
    for parts, message in [({"accept": "adasd", "length": "fixed"}, "AdaSDAccept"), ({"length": "svip"}, "SVIP")]:
        with pytest.raises(ValueError, match=message):
            engine.add(PROMPT, Sampling(), catalog.method("lookup", context, **parts))
    assert not engine.busy


def test_an_engine_needs_room() -> None:
    for options in ({"chunk": 0}, {"slots": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            Engine(Table(4), **options)
