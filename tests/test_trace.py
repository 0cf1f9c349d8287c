"""Recording and the file of a trace."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from draftwise import catalog, probs
from draftwise.bench import trace as traces
from draftwise.bench.noted import given
from draftwise.bench.tape import Tape, finish, record, save
from draftwise.bench.trace import Trace, load
from draftwise.engine import Engine
from draftwise.evidence import Live
from draftwise.protocols import Evidence
from draftwise.types import Draft, Sampling, Target, Uniforms
from tables import PROMPT, pair

DATA = Path(__file__).parent / "data"


def recorded(spec: str = "fixed:n=6", seed: int = 0, **sampling: Any) -> tuple[Trace, list[int], Any]:
    """A trace, the answer, and the sequence."""
    context = pair(seed=seed)
    tape, engine = Tape(), Engine(context.target)
    sequence = engine.add(PROMPT, Sampling(**{"max_tokens": 30, **sampling}), record(catalog.method(spec, context), tape))
    list(engine.stream())
    return finish(tape, sequence, {"note": "of a test"}), sequence.tokens[len(PROMPT) :], sequence


@pytest.mark.parametrize("spec", ["fixed:n=6", "adasd", "typical", "coupled", "lookup", "plain"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_recording_changes_nothing(spec: str, temperature: float) -> None:
    context = pair()
    plain = Engine(context.target).generate([PROMPT], Sampling(temperature, max_tokens=30), catalog.method(spec, context))[0]
    found, tokens, sequence = recorded(spec, temperature=temperature)
    assert tokens == plain == found.lists["emitted_tokens"]
    assert found.lists["drafted"] == [r.drafted for r in sequence.rounds]
    assert found.lists["finished"] == [r.finished for r in sequence.rounds]


def test_a_round_that_failed_and_was_done_again_is_noted_once() -> None:
    context = pair()
    tape, engine = Tape(), Engine(context.target)
    sequence = engine.add(PROMPT, Sampling(max_tokens=20), record(catalog.method("fixed:n=4", context), tape))
    engine.step()
    real, context.target.forward = context.target.forward, None  # type: ignore[method-assign,assignment]
    with pytest.raises(TypeError):
        engine.step()
    context.target.forward = real  # type: ignore[method-assign]
    list(engine.stream())
    found = finish(tape, sequence)
    assert found.lists["emitted_tokens"] == sequence.tokens[len(PROMPT) :]
    assert len(found.lists["token"]) == found.first[-1]


def test_requests_decoded_together_are_told_apart() -> None:
    context = pair()
    tapes, engine = [Tape(), Tape()], Engine(context.target)
    method = catalog.method("fixed:n=4", context)
    sequences = [engine.add(PROMPT[: 2 + i], Sampling(max_tokens=20), record(method, tape)) for i, tape in enumerate(tapes)]
    list(engine.stream())
    for tape, sequence in zip(tapes, sequences, strict=True):
        found = finish(tape, sequence)
        assert found.lists["emitted_tokens"] == sequence.tokens[sequence.prompt :]
        assert max(found.lists["batch"]) == 2


def test_a_tape_is_for_one_request() -> None:
    tape, method = Tape(), catalog.method("fixed", pair())
    record(method, tape)
    with pytest.raises(ValueError, match="one request"):
        record(method, tape)


def test_a_foreign_tape_is_refused() -> None:
    _, _, sequence = recorded()
    tape = Tape()
    record(catalog.method("fixed", pair()), tape)
    with pytest.raises(ValueError, match="did not record"):
        finish(tape, sequence)


def test_what_is_stored_of_a_token() -> None:
    """The columns of the first round against the laws that the tables are known to have."""
    context = pair()
    found, tokens, _ = recorded(temperature=0.8)
    lists, text = found.lists, list(PROMPT)
    for row in range(lists["drafted"][0]):
        token = lists["token"][row]
        p_raw, q_raw = context.target.row(text), context.draft.row(text)
        p, q = ((logits / 0.8).softmax(-1) for logits in (p_raw, q_raw))
        assert lists["law_prob"][row] == pytest.approx(float(p[token]), abs=1e-6)
        assert lists["q"][row] == pytest.approx(float(q[token]), abs=1e-6)
        assert lists["raw_prob"][row] == pytest.approx(float(p_raw.softmax(-1)[token]), abs=1e-6)
        assert lists["law_entropy"][row] == pytest.approx(float(torch.special.entr(p).sum()), abs=1e-5)
        assert lists["draft_entropy"][row] == pytest.approx(float(torch.special.entr(q_raw.softmax(-1)).sum()), abs=1e-5)
        assert lists["distance"][row] == pytest.approx(float(probs.js_distance(p_raw[None], q_raw[None])[0]), abs=1e-6)
        assert lists["target_ids"][row] == p_raw.argsort(descending=True).tolist()
        assert lists["draft_probs"][row] == pytest.approx(sorted(q_raw.softmax(-1).tolist(), reverse=True), abs=1e-6)
        assert lists["choice"][row] == int(probs.sample(p[None], torch.tensor([lists["sample"][row]], dtype=torch.float64))[0])
        assert lists["match"][row] == (lists["choice"][row] == token)
        text.append(token)
    assert 100 < sum(column[0].nbytes for name, column in found.columns.items() if name in (*traces.TOKENS, *traces.TOPS)) < 300


def test_after_a_whole_draft_the_next_proposal_is_stored() -> None:
    context = pair()
    found, tokens, _ = recorded("fixed:n=2")
    lists = found.lists
    whole = [r for r, n in enumerate(lists["drafted"]) if n and lists["accepted"][r] == n and not lists["finished"][r]]
    assert whole
    assert [r for r, n in enumerate(lists["beyond"]) if n] == whole
    for r in whole:
        end = found.contexts[r] + lists["drafted"][r]
        text = [*PROMPT, *tokens][:end]
        row = found.first[r + 1] - 1
        assert lists["token"][row] == int(context.draft.row(text).argmax())
        assert lists["choice"][row] == tokens[end - len(PROMPT)] == lists["bonus"][r]


def test_a_proposal_given_the_text_has_the_law_of_the_rejection_test() -> None:
    """Summed over what the target may have written, the drafted token has law q, and it is accepted as often as the test accepts it."""
    p, q = torch.tensor([0.5, 0.3, 0.2, 0.0]), torch.tensor([0.2, 0.5, 0.2, 0.1])
    generator = np.random.default_rng(0)
    n = 20_000
    drafted, accepted = np.zeros(4), np.zeros(4)
    for written, chances in zip(generator.choice(4, n, p=[0.5, 0.3, 0.2, 0.0]), generator.random((n, 3)).tolist(), strict=True):
        token, u = given(p, q, int(written), chances)
        passed = u * float(q[token]) < float(p[token])
        assert passed == (token == written)  # else the text would be another
        drafted[token] += 1
        accepted[token] += passed
    assert drafted / n == pytest.approx(q.numpy(), abs=0.015)  # 4 standard deviations
    assert accepted / n == pytest.approx(np.minimum(p.numpy(), q.numpy()), abs=0.015)


def test_live_evidence_is_evidence_and_lazy() -> None:
    target = Target(torch.tensor([[0.5, 0.5], [0.25, 0.75]]), torch.zeros(2, 2), torch.ones(1, dtype=torch.bool))
    live = Live(target, Draft(torch.tensor([1])), Uniforms(torch.tensor([0.4]).double(), torch.tensor([0.6, 0.1]).double()))
    assert isinstance(live, Evidence)
    assert (len(live), live.token(0), live.match(0), live.choice(0), live.choice(1)) == (1, 1, True, 1, 0)
    assert (live.law(0).prob, live.law(0).entropy) == (0.5, pytest.approx(math.log(2)))
    assert [token for token, _ in live.top(0)] in ([0, 1], [1, 0])
    for ask in (live.distance, live.step):
        with pytest.raises(ValueError, match="draft model"):
            ask(0)


def test_a_file_comes_back_as_it_was(tmp_path: Path) -> None:
    found, _, _ = recorded(temperature=0.8, stop_ids=(7,))
    traces.save(tmp_path / "sub" / "a.npz", found)
    again = load(tmp_path / "sub" / "a.npz")
    assert again.columns.keys() == found.columns.keys()
    assert all(np.array_equal(again.columns[name], column, equal_nan=True) for name, column in found.columns.items() if column.dtype.kind != "b")
    assert {key: again.header[key] for key in found.header} == json.loads(json.dumps(found.header))
    assert [p.name for p in (tmp_path / "sub").iterdir()] == ["a.npz"]  # nothing is left beside it
    assert [t.name for t in traces.load_all([tmp_path])] == ["a.npz"]


def test_the_seam_of_the_bench(tmp_path: Path) -> None:
    context, tape = pair(), Tape()
    engine = Engine(context.target)
    sequence = engine.add(PROMPT, Sampling(max_tokens=10), record(catalog.method("adasd", context), tape))
    list(engine.stream())
    save(tmp_path / "one.npz", tape, sequence, {"target": "table"})
    assert load(tmp_path / "one.npz").header["about"] == {"target": "table"}


def broken(kind: str, whole: bytes, found: Trace, place: Path) -> None:
    if kind == "foreign":
        np.savez(place, a=np.zeros(3))
    elif kind == "array":
        with place.open("wb") as file:
            np.save(file, np.zeros(3))
    elif kind in ("newer", "column", "length"):
        columns = dict(found.columns)
        if kind == "column":
            del columns["u"]
        if kind == "length":
            columns["u"] = columns["u"][:-1]
        traces.save(place, Trace(found.header, columns))
        if kind == "newer":
            with np.load(place) as file:
                arrays = dict(file)
            header = json.loads(bytes(arrays["header"])) | {"version": 99}
            np.savez(place, **(arrays | {"header": np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)}))
    else:
        place.write_bytes({"text": b"not a trace\n", "empty": b"", "cut": whole[: len(whole) // 2], "flipped": flipped(whole)}[kind])


def flipped(whole: bytes) -> bytes:
    middle = len(whole) // 2
    return whole[:middle] + bytes(b ^ 255 for b in whole[middle : middle + 40]) + whole[middle + 40 :]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("foreign", "no trace of draftwise"), ("array", "no trace of draftwise"), ("text", "no trace of draftwise"),
        ("empty", "no trace of draftwise"),
        ("cut", "cut off"), ("flipped", "no trace of draftwise|damaged"), ("newer", "version 99"), ("column", "lacks u"), ("length", "lengths of u"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_trace_is_refused_in_one_sentence(kind: str, said: str, tmp_path: Path) -> None:
    found, _, _ = recorded()
    traces.save(tmp_path / "whole.npz", found)
    place = tmp_path / "x.npz"
    broken(kind, (tmp_path / "whole.npz").read_bytes(), found, place)
    with pytest.raises(ValueError, match=said) as error:
        load(place)
    assert "x.npz" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_without_traces_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no trace"):
        traces.load_all([tmp_path])
