"""A draft's head that computes what is frequent and what its text has: which tokens, what the rows are, and that texts stay apart."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import tiny
from draftwise import catalog, narrowing
from draftwise.backends import hf_grouped
from draftwise.backends.hf import HF
from draftwise.backends.hf_cache import Segment
from draftwise.backends.hf_decoder import Decoder
from draftwise.backends.hf_shortlist import Shortlist
from draftwise.context import Context
from draftwise.engine import Engine
from draftwise.rounded import in_place
from draftwise.types import Feed, Sampling
from toy_tokenizers import words

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(bool(hf_grouped.possible(CPU)), reason=hf_grouped.possible(CPU))
WIDE = 100  # seven blocks, the last one of four tokens


def wide(base: Tensor | None = None) -> HF:
    model = in_place(tiny.model("llama", vocab_size=WIDE), "int4-all")
    assert isinstance(model.lean, Decoder)
    if base is not None:
        model.lean.shortlist = Shortlist(base)
    return HF(model)


def offered(row: Tensor) -> set[int]:
    """The blocks of a row that are there."""
    there = row.isfinite()
    assert all(torch.equal(part, part[:1].expand_as(part)) for part in there.split(16))
    return {i for i, part in enumerate(there.split(16)) if part[0]}


def test_a_text_has_its_own_tokens_and_the_frequent_ones() -> None:
    whole, short = wide(), wide(torch.arange(16))
    text = [3, 40, 99, 41, 3]
    seen: set[int] = {0}
    for token in text:  # the slot is longer each time
        seen.add(token // 16)
        want, row = (one.forward([Feed(0, torch.tensor([token]), 1)])[0].logits[0] for one in (whole, short))
        assert offered(row) == seen
        assert torch.equal(row[row.isfinite()], want[row.isfinite()])
    several = short.forward([Feed(0, torch.tensor([70, 20]), 2)])[0].logits
    assert [offered(row) for row in several] == [{0, 2, 4, 6}, {0, 1, 2, 4, 6}]
    short.free(0)
    assert offered(short.forward([Feed(0, torch.tensor([5, 17]), 1)])[0].logits[0]) == {0, 1}


def test_a_row_hangs_on_what_it_sees_alone() -> None:
    """Whatever was fed with it, after it or in other branches, and whatever was taken back."""
    prompt, tree = [3, 40, 99], [20, 50, 21, 70, 55]
    parents = torch.tensor([-1, -1, 0, 1, 2])
    short = wide(torch.arange(16))
    short.forward([Feed(0, torch.tensor(prompt), 0)])
    rows = short.forward([Feed(0, torch.tensor(tree), 5, parents)])[0].logits.clone()
    paths = [[20], [50], [20, 21], [50, 70], [20, 21, 55]]
    for row, path in zip(rows, paths, strict=True):
        own = wide(torch.arange(16))
        alone = own.forward([Feed(0, torch.tensor([*prompt, *path]), len(path))])[0].logits
        assert offered(alone[-1]) == offered(row)
        assert torch.equal(alone[-1], row)
        steps = wide(torch.arange(16))
        assert torch.equal(alone[-1], [steps.forward([Feed(0, torch.tensor([token]), 1)])[0].logits for token in [*prompt, *path]][-1][0])
    short.keep(0, 3, [4, 6])  # the path 50, 70
    assert offered(short.forward([Feed(0, torch.tensor([5]), 1)])[0].logits[0]) == {0, 2, 3, 4, 6}
    short.keep(0, 2)
    assert offered(short.forward([Feed(0, torch.tensor([5]), 1)])[0].logits[0]) == {0, 2}


def test_texts_beside_each_other_do_not_lend_tokens() -> None:
    feeds = [Feed(0, torch.tensor([3, 20]), 2), Feed(1, torch.tensor([40]), 0), Feed(2, torch.tensor([99, 3, 50]), 1), Feed(3, torch.tensor([21]), 1)]
    together = [rows.logits.clone() for rows in wide(torch.arange(16)).forward(feeds)]
    for feed, rows in zip(feeds, together, strict=True):
        assert torch.equal(wide(torch.arange(16)).forward([feed])[0].logits, rows)
    assert offered(together[2][0]) == {0, 3, 6} and offered(together[3][0]) == {0, 1}


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("method", ["fixed:n=4", "adasd-stop", "coupled", "breakeven", "adasd"])
def test_no_text_changes(method: str, temperature: float) -> None:
    target = HF(in_place(tiny.model("llama", vocab_size=WIDE), "int4"))
    context = Context(target, wide(torch.arange(32)), WIDE)
    sampling = Sampling(temperature, max_tokens=30, seed=5)
    prompts = [[3, 1, 90], [60, 70]]
    texts = Engine(target).generate(prompts, sampling, catalog.method(method, context))
    if method == "coupled" or (not temperature and method != "adasd"):
        assert texts == Engine(target).generate(prompts, sampling, catalog.method("plain", context))
    assert [len(text) for text in texts] == [30, 30]


def test_which_drafts_have_one(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = words([f"w{i}" for i in range(90)])
    draft, full = (in_place(tiny.model("llama", vocab_size=WIDE), "int4-all") for _ in range(2))
    narrowing.shorten(draft, tokenizer)
    assert draft.lean.shortlist is None  # a hundred tokens are too few
    monkeypatch.setattr(narrowing, "_FREQUENT", 16)
    narrowing.shorten(draft, tokenizer)
    special = {int(i) // 16 for i in tokenizer.all_special_ids}
    draft.lean.shortlist.begin([Feed(0, torch.tensor([1]), 1)], [Segment(0, 1, 0, 0, None, None)])
    assert set(draft.lean.shortlist.blocks().tolist()) == {0} | special
    plain = tiny.model("llama", vocab_size=WIDE)
    narrowing.shorten(plain, tokenizer)  # has no pass that leaves outputs out
    assert not hasattr(plain, "lean") and full.lean.shortlist is None
    row = HF(plain).forward([Feed(0, torch.tensor([1]), 1)])[0].logits
    assert not (row == -math.inf).any()
