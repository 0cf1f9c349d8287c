"""A draft's head cut to some tokens: which they are, what the rows then are, and that no text changes."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

import tiny
from draftwise import catalog
from draftwise.backends.hf_lean import Lean
from draftwise.backends.hf_packed import product
from draftwise.backends.hf_replay import wrap
from draftwise.context import Context
from draftwise.engine import Engine
from draftwise.narrowing import chosen, narrow
from draftwise.types import Feed, Sampling
from toy_tokenizers import words

IDS = torch.tensor([0, 2, 3, 5, 8, 13, 21, 34, 40, 47])


def rows(model: Any) -> torch.Tensor:
    return wrap(model).forward([Feed(0, torch.arange(3, 20), 5)])[0].logits.clone()


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma2", "phi", "mamba", "llama-lean"])
def test_a_cut_head_gives_the_rows_it_had_over_its_tokens(name: str) -> None:
    whole = rows(tiny.model(name.removesuffix("-lean")))
    model = tiny.model(name.removesuffix("-lean"))
    narrow(model, IDS)
    if name.endswith("-lean"):
        model.lean = Lean(model, product)
    assert wrap(model).vocab_size == tiny.VOCAB
    cut = rows(model)
    torch.testing.assert_close(cut[:, IDS], whole[:, IDS], atol=2e-5, rtol=1e-5)
    others = torch.ones(tiny.VOCAB, dtype=torch.bool)
    others[IDS] = False
    assert (cut[:, others] == -torch.inf).all()


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("method", ["fixed:n=4", "adasd-stop", "coupled", "breakeven", "svip"])
def test_a_cut_draft_changes_no_text(method: str, temperature: float) -> None:
    """Greedy and coupled texts are those of plain decoding; under the others a draft that is its target is accepted wherever it can propose."""
    target, draft = tiny.model("llama"), tiny.model("llama")
    narrow(draft, torch.arange(0, tiny.VOCAB, 2))
    context = Context(wrap(target), wrap(draft), tiny.VOCAB)
    sampling = Sampling(temperature, max_tokens=40, seed=5)
    text = Engine(context.target).generate([[3, 1, 4]], sampling, catalog.method(method, context))
    assert len(text[0]) == 40
    if not temperature or method == "coupled":
        assert text == Engine(context.target).generate([[3, 1, 4]], sampling, catalog.method("plain", context))


def test_which_tokens(tmp_path) -> None:
    tokenizer = words([f"w{i}" for i in range(5000)])
    assert chosen(10, tokenizer, 5000).tolist()[:10] == list(range(10))
    assert chosen("10", tokenizer, 5000).tolist() == chosen(10, tokenizer, 5000).tolist()
    late = tokenizer.decode([4800, 4900])
    (tmp_path / "own.txt").write_text(late)
    assert chosen(tmp_path / "own.txt", tokenizer, 5000).tolist()[4096:] == [4800, 4900]
    (tmp_path / "own.jsonl").write_text(json.dumps({"turns": [tokenizer.decode([4800])], "n": 3}) + "\n\n" + json.dumps(tokenizer.decode([4900])))
    assert chosen(tmp_path / "own.jsonl", tokenizer, 5000).tolist()[4096:] == [4800, 4900]


@pytest.mark.parametrize(
    ("given", "says"), [("0", "between 1 and all 48"), ("49", "got 49"), ("-3", "got -3"), ("none.txt", "none.txt' cannot be read: No such file"),
                        ("bad.jsonl", "line 2 of .*bad.jsonl' is no JSON"), ("bytes.txt", "no UTF-8")]
)  # fmt: skip
def test_what_is_no_vocabulary(given: str, says: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.jsonl").write_text('"a"\n{')
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ValueError, match=says):
        chosen(given, words([f"w{i}" for i in range(48)]), 48)


def test_an_encoder_decoder_is_left_alone() -> None:
    with pytest.raises(ValueError, match="no decoder with a linear head"):
        narrow(tiny.seq2seq("t5"), IDS)
