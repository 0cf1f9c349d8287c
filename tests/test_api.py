"""Text in, text out: over the table model (exact, any bytes) and over tiny folders loaded for real."""

from __future__ import annotations

import gc
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import draftwise
from draftwise import Method, Piece, Result, Speculator
from draftwise.backends.table import Table
from draftwise.methods.fixed import Fixed
from draftwise.methods.prompt_lookup import PromptLookup
from draftwise.methods.speculative import Speculative
from tiny_folders import CONTEXT, save
from toy_tokenizers import byte_level, unigram, words

PROMPT = "abcabcabc"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A target, a draft with other weights, and one with another vocabulary."""
    base = tmp_path_factory.mktemp("models")
    torch.set_num_threads(1)
    return save(base / "target"), save(base / "draft", seed=1), save(base / "wide", extra=5)


@pytest.fixture(scope="module")
def tokenizer(folders):
    return AutoTokenizer.from_pretrained(folders[0])


@pytest.fixture
def table(tokenizer) -> Speculator:
    vocab = len(tokenizer)
    return draftwise.load((Table(vocab, sharpness=3.0), tokenizer), (Table(vocab, sharpness=3.0, twist=0.3), tokenizer))


@pytest.fixture(scope="module")
def real(folders) -> Speculator:
    return draftwise.load(folders[0], folders[1], dtype="float32", device="cpu")


def idle(speculator: Speculator) -> bool:
    return not speculator.engine.busy and not speculator._live


def test_importing_the_package_loads_no_library():
    code = "import sys, draftwise; print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip() == "[]"
    assert all(hasattr(draftwise, name) for name in draftwise.__all__)
    with pytest.raises(AttributeError, match="nothing_here"):
        _ = draftwise.nothing_here


def test_the_api_does_not_need_transformers():
    code = "import sys, draftwise; draftwise.load; print('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip() == "False"


def test_greedy_text_is_that_of_transformers(real, folders):
    model = AutoModelForCausalLM.from_pretrained(folders[0], dtype=torch.float32)
    ids = torch.tensor([real.tokenizer.encode(PROMPT)])
    expected = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False, pad_token_id=256)
    result = real.generate(PROMPT, 40)
    assert list(result.tokens) == expected[0, ids.shape[1] :].tolist()
    assert result.prompt_tokens == len(PROMPT) and result.logprobs is None
    assert result.stats.drafted > 0 and result.stats.tokens == len(result.tokens) == len(result.origins)
    json.dumps(result.stats._asdict())


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_generate_is_the_joined_stream(real, table, temperature):
    for speculator in (real, table):
        options = {"max_tokens": 40, "temperature": temperature, "seed": 3, "logprobs": True, "method": "coupled"}
        result = speculator.generate(PROMPT, **options)
        pieces = list(speculator.stream(PROMPT, **options))
        last = pieces[-1].result
        assert last is not None and all(piece.result is None for piece in pieces[:-1])
        assert "".join(piece.text for piece in pieces) == result.text == last.text
        assert sum((piece.tokens for piece in pieces), ()) == result.tokens == last.tokens
        assert sum((piece.origins for piece in pieces), ()) == result.origins
        assert "".join(text for piece in pieces for text, _ in piece.parts) == result.text
        assert pieces[-1].finish_reason == result.finish_reason is not None
        assert result.logprobs == pytest.approx(last.logprobs) and len(result.logprobs) == len(result.tokens)
        assert idle(speculator)


def test_the_text_is_that_of_its_tokens(table, tokenizer):
    result = table.generate(PROMPT, 30)
    assert result.text == tokenizer.decode(result.tokens, skip_special_tokens=True)


@pytest.mark.parametrize("method", ["adasd-stop", "fixed:n=4", "lookup", "coupled"])
def test_methods_by_request(real, table, method):
    for speculator in (real, table):
        plain = speculator.generate(PROMPT, 40, method="plain")
        assert plain.stats.drafted == 0 and set(plain.origins) == {"target"}
        assert speculator.generate(PROMPT, 40, method=method).tokens == plain.tokens


def test_a_seed_and_a_method_give_the_same_text_and_none_gives_another(table):
    options = {"max_tokens": 30, "temperature": 1.0, "method": "plain"}
    assert table.generate(PROMPT, seed=5, **options) [:4] == table.generate(PROMPT, seed=5, **options)[:4]
    assert table.generate(PROMPT, **options).tokens == table.generate(PROMPT, seed=0, **options).tokens
    assert len({table.generate(PROMPT, seed=None, **options).tokens for _ in range(3)}) == 3


def test_a_list_is_decoded_together_and_each_as_alone(table):
    prompts = ["abc", [5, 6, 7], [{"role": "user", "content": "hi"}], "abc"]
    options = {"max_tokens": 20, "temperature": 1.0, "method": "coupled"}
    results = table.generate(prompts, seed=7, **options)
    assert [type(result) for result in results] == [Result] * 4
    assert max(record.batch for request in _requests_of(table, prompts, options) for record in request.decoding.rounds) == 4
    for i, prompt in enumerate(prompts):
        assert table.generate(prompt, seed=7 + i, **options).tokens == results[i].tokens
    assert results[0].tokens != results[3].tokens  # equal prompts, other numbers
    assert [piece.index for piece in table.stream(prompts, 1)] == [0, 1, 2, 3]
    assert table.generate(["abc"], 3)[0].tokens == table.generate("abc", 3).tokens


def _requests_of(speculator, prompts, options):
    stream = speculator.stream(prompts, **options)
    for _ in stream:
        pass
    return stream._requests


def test_two_streams_are_read_in_turn(table):
    alone = [table.generate(prompt, 25).tokens for prompt in ("abc", "xyz")]
    first, second = table.stream("abc", 25), table.stream("xyz", 25)
    pieces: list[tuple[Piece, Piece]] = list(zip(first, second, strict=False))
    assert len(pieces) > 2
    for stream in (first, second):
        for _ in stream:
            pass
    assert [first.results[0].tokens, second.results[0].tokens] == alone
    assert idle(table)


@pytest.mark.parametrize("way", ["close", "drop", "with", "interrupt"])
def test_a_stream_broken_off_leaves_all_usable(table, way, monkeypatch):
    expected = table.generate(PROMPT, 30).tokens
    other = table.stream("xyz", 30)
    next(other)
    stream = table.stream(PROMPT, 30)
    next(stream)
    if way == "close":
        stream.close()
    elif way == "drop":
        del stream
        gc.collect()
    elif way == "with":
        with stream:
            pass
    else:
        forward = table.context.target.forward

        def interrupted(feeds):
            forward(feeds)
            raise KeyboardInterrupt

        monkeypatch.setattr(table.context.target, "forward", interrupted)
        before = stream.results[0]
        with pytest.raises(KeyboardInterrupt):
            list(stream)
        monkeypatch.undo()
        partial = stream.results[0]
        assert partial.finish_reason is None and partial.tokens[: len(before.tokens)] == before.tokens
        assert partial.stats.tokens == len(partial.tokens) and list(stream) == []
    assert len(table._live) == 1
    assert table.generate(PROMPT, 30).tokens == expected
    assert list(other)[-1].result.tokens == table.generate("xyz", 30).tokens
    assert idle(table)


def test_a_stop_string_ends_text_and_tokens(table):
    whole = table.generate(PROMPT, 60)
    stop = next(whole.text[i : i + 2] for i in range(8, len(whole.text)) if "\ufffd" not in whole.text[i : i + 2])
    result = table.generate(PROMPT, 60, stop=["nowhere in there", stop])
    assert result.text == whole.text[: whole.text.index(stop)]
    assert result.finish_reason == "stop"
    assert result.tokens == whole.tokens[: len(result.tokens)]
    assert stop in table.tokenizer.decode(result.tokens) and stop not in table.tokenizer.decode(result.tokens[:-1])
    assert result.stats.tokens == len(result.tokens) == len(result.origins)
    assert result.stats.accepted == sum(origin != "target" for origin in result.origins)
    pieces = list(table.stream(PROMPT, 60, stop=stop))
    assert "".join(piece.text for piece in pieces) == result.text == "".join(text for piece in pieces for text, _ in piece.parts)
    assert idle(table)


def test_an_end_that_only_looks_like_a_stop_is_shown(table):
    whole = table.generate(PROMPT, 30)
    result = table.generate(PROMPT, 30, stop=whole.text[-2:] + "never")
    assert (result.text, result.finish_reason) == (whole.text, "length")
    assert "".join(text for piece in table.stream(PROMPT, 30, stop=whole.text[-2:] + "never") for text, _ in piece.parts) == whole.text


def test_an_end_token_is_a_token_and_no_text(tokenizer):
    rows = {(): [1 / 257] * 257, (97,): np.eye(257)[98].tolist(), (98,): np.eye(257)[256].tolist()}
    model = draftwise.load((Table(257, order=1, rows=rows), tokenizer))
    result = model.generate([97], 10)
    assert (result.tokens, result.text, result.finish_reason) == ((98, 256), tokenizer.decode([98]), "stop")
    assert model.generate([97], 1).finish_reason == "length"
    assert model.generate([97], 10, stop="<end>").tokens == (98, 256)


def test_parts_given_to_load(folders, tokenizer):
    pair = (Table(257), tokenizer)
    assert draftwise.load(pair, method="lookup").method.drafter.__class__ is PromptLookup
    chosen = draftwise.load(pair, pair, method="adasd", length="fixed:n=2", accept=Speculative()).method
    assert chosen.length == Fixed(2) and chosen.accept == Speculative()
    own = Method(Fixed(3), Speculative(), PromptLookup())
    assert draftwise.load(pair, method=own).method == own
    assert draftwise.load(pair, method=own, length="fixed:n=1").method == own._replace(length=Fixed(1))
    assert draftwise.load(pair).generate(PROMPT, 5, method=own).tokens == draftwise.load(pair).generate(PROMPT, 5).tokens


def test_own_models_and_names_mix(folders):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folders[0], dtype=torch.float32), AutoTokenizer.from_pretrained(folders[0])
    mixed = draftwise.load((model, tokenizer), str(folders[1]), dtype="float32", device="cpu")
    loaded = draftwise.load_model(folders[0], "float32", "cpu")
    assert mixed.generate(PROMPT, 20).tokens == draftwise.load(loaded).generate(PROMPT, 20).tokens
    assert mixed.generate(torch.tensor(tokenizer.encode(PROMPT)), 20).tokens == mixed.generate(PROMPT, 20).tokens
    assert mixed.generate(list(np.array(tokenizer.encode(PROMPT))), 20).tokens == mixed.generate(PROMPT, 20).tokens


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"method": "adsd"}, "did you mean 'adasd'"),
        ({"method": "adasd-stop"}, "needs a draft"),
        ({"length": "fixd"}, "did you mean 'fixed'"),
        ({"dtype": "int8"}, "unknown dtype 'int8'"),
        ({"device": "nonsense"}, "unknown device"),
        ({"target": 7}, "name, a path, or the pair"),
        ({"target": ("a", "b")}, r"pair \(model, tokenizer\)"),
        ({"target": (Table(8), None)}, "has no tokenizer"),
    ],
)
def test_bad_arguments_of_load(folders, arguments, says):
    with pytest.raises(ValueError, match=says):
        draftwise.load(**({"target": folders[0]} | arguments))


def test_several_drafts_form_a_hierarchy(tokenizer):
    target, large, small = ((Table(257, sharpness=3.0, twist=twist), tokenizer) for twist in (0.0, 0.3, 0.6))
    spec = "cascade:model=1,length=[fixed:n=3],[cascade:model=2,[prompt-lookup]]"
    stacked = draftwise.load(target, [large, small], method="fixed:n=6", drafter=spec)
    drafter = stacked.method.drafter
    assert (drafter.backend, drafter.inner.backend, drafter.level) == (large[0], small[0], 2)
    assert stacked.context.draft is large[0] and stacked.context.drafts == (large[0], small[0])
    assert stacked.generate(PROMPT, 40).tokens == stacked.generate(PROMPT, 40, method="plain").tokens
    assert draftwise.load(target, [large, small], drafter="draft-model:model=2").method.drafter.backend is small[0]
    with pytest.raises(ValueError, match=r"no draft 3: the drafts are 1 \(Table\), 2 \(Table\)"):
        draftwise.load(target, [large, small], method="fixed", drafter="cascade:model=3")
    with pytest.raises(ValueError, match="no draft 2: the drafts are 1"):
        draftwise.load(target, large, method="fixed", drafter="draft-model:model=2")
    with pytest.raises(ValueError, match="each level of a hierarchy needs a model of its own"):
        draftwise.load(target, [large, small], drafter="cascade:model=2,[cascade:model=1,[draft-model:model=2]]", method="fixed")
    with pytest.raises(ValueError, match="draft 2 was named before"):
        draftwise.load(target, [large, large])


def test_a_draft_can_be_named(folders):
    named = draftwise.load(folders[0], [folders[1], folders[0]], dtype="float32", drafter="draft-model:model=draft")
    assert named.method.drafter.backend is named.context.draft and named.context.names == ("draft", "target")


def test_a_draft_of_another_vocabulary(folders, tokenizer):
    wide = draftwise.load(folders[0], folders[2], dtype="float32", device="cpu")  # goes on where the other ends
    assert wide.generate(PROMPT, 20).tokens == wide.generate(PROMPT, 20, method="plain").tokens
    assert wide.note == ""
    told = []
    shifted = save(folders[0].parent / "shifted", shift=1)
    for target, draft in ((folders[2], folders[0]), (folders[0], shifted)):
        made = draftwise.load(target, draft, dtype="float32", device="cpu", progress=told.append)
        assert made.note == told[-1] and f"{draft.name} has another vocabulary than {target.name}" in made.note and "(tli" in made.note
        plain = made.generate(PROMPT, 20, method="plain")
        for method in (None, "adasd-stop", "gammatune", "coupled", "cascade"):
            assert made.generate(PROMPT, 20, method=method).tokens == plain.tokens
        assert made.generate(PROMPT, 20, method="adasd", temperature=1.0).stats.drafted > 0


@pytest.mark.parametrize("drafter", ["tli", "slem", "uag"])
def test_how_a_foreign_draft_drafts_can_be_chosen(tokenizer, drafter):
    target, draft = byte_level(["t h", "th e", "Ġ the"]), unigram(["\u2581", "\u2581the", "the", "t", "h", "e"])
    own, sharp = Table(len(target), sharpness=3.0), Table(len(draft), sharpness=3.0)
    made = draftwise.load((own, target), (sharp, draft), drafter=drafter)
    assert type(made.method.drafter).__name__ == drafter.upper() and made.note == ""
    result = made.generate("the the", 30)
    assert result.tokens == made.generate("the the", 30, method="plain").tokens and result.stats.drafted > 0
    with pytest.raises(ValueError, match="'tli' needs a draft of another vocabulary"):
        draftwise.load((own, target), (Table(len(target)), target), drafter="tli")
    if drafter != "tli":
        with pytest.raises(ValueError, match=f"{drafter.upper()} has none"):
            draftwise.load((own, target), (sharp, draft), method="adasd", drafter=drafter).generate("the", 3)


def test_a_draft_that_shares_few_tokens_writes_text():
    target, draft = byte_level(["t h", "th e", "Ġ the"]), words(["the", "a", "of"])
    made = draftwise.load((Table(len(target)), target), (Table(len(draft)), draft))
    assert "(slem" in made.note and [type(part).__name__ for part in made.method.drafter.parts] == ["Suffix", "SLEM"]
    assert made.generate("the a", 20).tokens == made.generate("the a", 20, method="plain").tokens
    assert type(made._method("cascade").drafter).__name__ == "Cascade"


def test_a_draft_that_shares_nothing_is_refused():
    pairs = [(Table(len(names) + 1), words(names)) for names in (["one", "two"], ["three", "four"])]
    with pytest.raises(ValueError, match=r"cannot draft for .*, since no token of one vocabulary is text of the other .*'lookup' needs no draft"):
        draftwise.load(*pairs)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
        ({"max_tokens": -3}, "max_tokens"),
        ({"max_tokens": 2.5}, "whole number"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"seed": -1}, "seed"),
        ({"stop": ""}, "at least one character"),
        ({"method": "adsd"}, "did you mean"),
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": []}, "prompt is empty"),
        ({"prompt": "a" * 9999}, "context holds 4096"),
        ({"prompt": ["abc", ""]}, "prompt 1 of the list: the prompt is empty"),
        ({"prompt": [[1, 2], [257]]}, "prompt 1 of the list: .* id 257"),
    ],
)
def test_bad_requests(table, options, says):
    for call in (table.generate, table.stream):
        with pytest.raises(ValueError, match=says):
            call(**({"prompt": "abc"} | options))
    assert idle(table)


def test_the_context_ends_the_text(real):
    result = real.generate("ab" * (CONTEXT // 2 - 5), 50)
    assert result.finish_reason == "length" and len(result.tokens) == 10
    with pytest.raises(ValueError, match=f"context holds {CONTEXT}"):
        real.generate("a" * CONTEXT)


@pytest.mark.slow
def test_the_embedded_model_answers():
    speculator = draftwise.load("smollm2", dtype="float32", device="cpu")
    messages = [{"role": "user", "content": "What is the capital of France? Answer in one short sentence."}]
    plain, lookup = (speculator.generate(messages, 32, method=method) for method in ("plain", "lookup"))
    assert "Paris" in plain.text and "<|" not in plain.text
    assert plain.finish_reason == "stop" and speculator.tokenizer.convert_ids_to_tokens(plain.tokens[-1]) == "<|im_end|>"
    assert lookup.tokens == plain.tokens


def test_an_account_comes_with_the_result(tokenizer):
    """Of a rule that keeps one; the others have none."""
    target, draft = (Table(len(tokenizer), sharpness=1.0, twist=twist) for twist in (0.0, 0.3))
    held = draftwise.load((target, tokenizer), (draft, tokenizer), accept="budget:tv=0.25,over=[typical]")
    result = held.generate(PROMPT, 60, temperature=1.0, seed=1)
    assert result.account["tv"] == result.stats.relaxed > 0
    assert result.account["tv_left"] == pytest.approx(0.25 * result.stats.tokens - result.stats.relaxed)
    assert held.generate(PROMPT, 5, method="plain").account is None
