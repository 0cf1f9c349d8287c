"""One battery for all backends. The oracle of a transformers model is transformers itself reading the whole text at once."""

from __future__ import annotations

import importlib.util
import random
import tempfile
from collections.abc import Callable
from functools import cache
from inspect import Parameter, Signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import graphs
import tiny
import tiny_gguf
from draftwise.backends.hf import CACHES, HF, cache_name
from draftwise.backends.hf_attention import visible
from draftwise.backends.hf_cache import Region, Regions, Segment
from draftwise.backends.hf_lean import Lean, unfit
from draftwise.backends.hf_packed import product
from draftwise.backends.hf_replay import HFReplay, wrap
from draftwise.backends.hf_seq2seq import HFSeq2Seq
from draftwise.backends.table import Table
from draftwise.protocols import Backend
from draftwise.rounded import PRECISIONS
from draftwise.trees import depths, path_to
from draftwise.types import Feed

ATTENTION = list(tiny.CONFIGS)
GGUF = [f"{name}-gguf" for name in tiny_gguf.NAMES] if importlib.util.find_spec("llama_cpp") else []
RECURRENT = [*tiny.RECURRENT, *(name for name in GGUF if name == "mamba-gguf")]
WAYS = {way.name: way for ways in PRECISIONS.values() for way in ways if not way.possible(torch.device("cpu"))}
FEW_BITS = [f"{name}-{way}" for way in WAYS for name in ("llama", "qwen2")]
GRAPHS = [f"{name}-graphs" for name in ("llama", "qwen2-window", "gemma2", "gemma3", "phi")]
LEAN = ["llama-lean", "qwen2-lean", "qwen3-lean", *FEW_BITS]
TREES = ["table", *ATTENTION, *GRAPHS, *LEAN, *(name for name in GGUF if name not in RECURRENT)]
SEQ2SEQ = list(tiny.SEQ2SEQ)
ALL = [*TREES, *RECURRENT, "llama-replay", *SEQ2SEQ]
TREE = torch.tensor([-1, 0, 0, -1, 3, 2, 5, 3])
_V = tiny.VOCAB


class Case(NamedTuple):
    """How to make an empty backend, the logits [n, V] that it should give for a whole text, and how close its own have to be."""

    make: Callable[[], Any]
    oracle: Callable[[tuple[int, ...]], Tensor]
    close: Callable[[Tensor, Tensor], None]


@cache
def model(name: str) -> Any:
    torch.set_num_threads(1)
    if name.endswith("-gguf"):
        return tiny_gguf.model(name.removesuffix("-gguf"))
    if name in LEAN:
        own = tiny.model(name.partition("-")[0])
        if name in FEW_BITS:
            way = WAYS[name.partition("-")[2]]
            own.lean = way.lean(own, way.make)
            return own
        own.lean = Lean(own, product)
        return own
    return tiny.seq2seq(name) if name in SEQ2SEQ else tiny.model(name.removesuffix("-replay").removesuffix("-graphs"))


@cache
def gguf_file(name: str) -> Path:
    return tiny_gguf.write(name.removesuffix("-gguf"), Path(tempfile.mkdtemp(), f"{name}.gguf"))


def llamacpp(name: str) -> Any:
    """In float32 throughout, so that it can be held against transformers."""
    from draftwise.backends.llamacpp import LlamaCpp

    return LlamaCpp(gguf_file(name), threads=1, cache="f32", flash=False)


@cache
def oracle(name: str, tokens: tuple[int, ...]) -> Tensor:
    if name == "table":
        return torch.stack([Table(_V).row(tokens[: i + 1]) for i in range(len(tokens))])
    if name.endswith("-lean"):
        return oracle(name.partition("-")[0], tokens)
    if name in FEW_BITS:  # what it gives for the whole text; how near that is to full precision is another test's matter
        return wrap(model(name)).forward([feed(0, tokens, len(tokens))])[0].logits
    if name in SEQ2SEQ:
        return decoded(name, tiny.source(name), tokens)
    with torch.no_grad():
        return model(name)(input_ids=torch.tensor([tokens])).logits[0]


@torch.no_grad()
def decoded(name: str, source: Tensor, tokens: tuple[int, ...]) -> Tensor:
    """The whole decoder text at once; NLLB, whose positions leave out padding within a pass, token by token, as transformers decodes."""
    own, given = model(name), {"input_features" if name == "whisper" else "input_ids": source[None]}
    if name != "nllb":
        return own(**given, decoder_input_ids=torch.tensor([tokens])).logits[0]
    out, rows = None, []
    for token in tokens:
        out = own(**given, decoder_input_ids=torch.tensor([[token]]), use_cache=True, **{cache_name(own): out and out[cache_name(own)]})
        rows.append(out.logits[0])
    return torch.cat(rows)


class Sourced(HFSeq2Seq):
    """Gives every feed the same source, so that the battery for decoders runs over a decoder with an encoder."""

    def forward(self, feeds):
        source = tiny.source("whisper" if self.reads == "input_features" else "t5")
        return super().forward([one if one.source is not None else one._replace(source=source) for one in feeds])


def case(name: str) -> Case:
    makers: dict[str, Any] = {"table": lambda: Table(_V, max_length=128)} | {seq2seq: lambda: Sourced(model(name)) for seq2seq in SEQ2SEQ}
    makers |= dict.fromkeys(GGUF, lambda: llamacpp(name)) | dict.fromkeys(GRAPHS, lambda: graphs.backend(model(name), after=1))
    make = makers.get(name) or ((lambda: HFReplay(model(name))) if name.endswith("-replay") else (lambda: wrap(model(name))))
    return Case(make, lambda tokens: oracle(name, tokens), nearly if name == "gemma3-gguf" or name in FEW_BITS else close)


def text(seed: int, n: int) -> tuple[int, ...]:
    rng = random.Random(seed)
    return tuple(rng.randrange(_V) for _ in range(n))


def feed(slot: int, tokens: tuple[int, ...], want: int, parents: Tensor | None = None) -> Feed:
    return Feed(slot, torch.tensor(tokens, dtype=torch.int64), want, parents)


def close(rows: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(rows.float(), expected.float(), atol=2e-5, rtol=1e-5)


def nearly(rows: Tensor, expected: Tensor) -> None:
    """For llama.cpp's GELU, which is a table of float16, and for inputs of 8 bits, where the last place of a float can move a whole step."""
    torch.testing.assert_close(rows.float(), expected.float(), atol=5e-3, rtol=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_is_a_backend(name):
    backend = case(name).make()
    assert isinstance(backend, Backend)
    assert (backend.vocab_size, backend.max_length) == (_V, 2**31 if name in ("t5", "mt5") else 128)
    assert backend.length(0) == 0


@pytest.mark.parametrize("name", ALL)
def test_whole_text_and_chunks(name):
    make, expected, close = case(name)
    tokens = text(1, 33)
    whole, chunked = make(), make()
    close(whole.forward([feed(0, tokens, 33)])[0].logits, expected(tokens))
    for start, end in ((0, 9), (9, 10), (10, 26)):
        assert chunked.forward([feed(0, tokens[start:end], 0)])[0].logits.shape == (0, _V)
        assert chunked.length(0) == end
    close(chunked.forward([feed(0, tokens[26:], 5)])[0].logits, expected(tokens)[-5:])


@pytest.mark.parametrize("name", ALL)
def test_keep_then_forward_equals_recomputation(name):
    make, expected, close = case(name)
    backend, tokens = make(), text(2, 12)
    backend.forward([feed(0, tokens, 0)])
    for seed, (drafted, accepted) in enumerate([(5, 2), (1, 0), (6, 6), (3, 0), (9, 8)]):
        start = backend.length(0)
        draft = (*tokens[start:], *text(10 + seed, drafted))
        rows = backend.forward([feed(0, draft, drafted + 1 if start < len(tokens) else drafted)])[0].logits
        close(rows, expected((*tokens[:start], *draft))[-len(rows) :])
        tokens = (*tokens[:start], *draft)[: len(tokens) + accepted] + text(50 + seed, 1)
        assert 0 <= backend.keep(0, len(tokens) - 1) <= len(tokens) - 1
        assert backend.length(0) < len(tokens)
    rest = tokens[backend.length(0) :]
    close(backend.forward([feed(0, rest, 1)])[0].logits, expected(tokens)[-1:])


@pytest.mark.parametrize("name", ALL)
def test_keep_never_keeps_more(name):
    make, expected, close = case(name)
    backend, tokens = make(), text(3, 10)
    assert backend.keep(7, 5) == 0
    backend.forward([feed(0, tokens, 1)])
    assert backend.keep(0, 99) == 10
    assert backend.keep(0, 8, [8, 9, 10, 11]) == 10
    left = backend.keep(0, 4)
    assert left <= 4
    assert backend.keep(0, 9) == left == backend.length(0)
    assert backend.keep(0, 0) == 0
    close(backend.forward([feed(0, tokens, 10)])[0].logits, expected(tokens))


@pytest.mark.parametrize("name", ALL)
def test_free_and_use_again(name):
    make, expected, close = case(name)
    backend = make()
    backend.forward([feed(0, text(4, 20), 0), feed(1, text(5, 7), 0)])
    backend.free(0)
    backend.free(9)
    assert (backend.length(0), backend.length(1)) == (0, 7)
    close(backend.forward([feed(0, text(6, 70), 2)])[0].logits, expected(text(6, 70))[-2:])
    tokens = (*text(5, 7), 1, 2, 3)
    close(backend.forward([feed(1, (1, 2, 3), 3)])[0].logits, expected(tokens)[-3:])


@pytest.mark.parametrize("name", ALL)
def test_ragged_batch_equals_each_alone(name):
    """Speculation at random on four slots, some resting, one leaving and coming back: every row is that of its own text."""
    make, expected, close = case(name)
    backend, rng = make(), random.Random(7)
    texts = {slot: text(20 + slot, 3 + 9 * slot) for slot in range(4)}
    for turn in range(8):
        if turn == 5:
            backend.free(2)
            texts[2] = text(99, 40)
        feeds, fulls = [], []
        for slot in rng.sample(sorted(texts), rng.randint(1, 4)):
            draft = text(1000 * turn + slot, rng.randint(0, 6))
            new = (*texts[slot][backend.length(slot) :], *draft)
            feeds.append(feed(slot, new, len(draft) + 1))
            fulls.append((*texts[slot], *draft))
        for one, full, rows in zip(feeds, fulls, backend.forward(feeds), strict=True):
            close(rows.logits, expected(full)[-one.want :])
            kept = len(texts[one.slot]) + rng.randint(0, one.want - 1)
            texts[one.slot] = (*full[:kept], rng.randrange(_V))
            assert backend.keep(one.slot, kept) <= kept


@pytest.mark.parametrize("name", TREES)
def test_trees_equal_their_paths(name):
    """Two trees and a chain in one forward, after texts of different lengths; then the path of one leaf is kept and read on."""
    make, expected, close = case(name)
    backend = make()
    texts = {0: text(30, 11), 1: text(31, 2), 2: text(32, 5)}
    backend.forward([feed(slot, tokens, 0) for slot, tokens in texts.items()])
    tree, chain = text(33, len(TREE)), text(34, 4)
    rows = backend.forward([feed(0, tree, 8, TREE), feed(1, chain, 4), feed(2, tree, 3, TREE)])
    close(rows[1].logits, expected(texts[1] + chain)[-4:])
    for slot, row, i in [(0, i, i) for i in range(8)] + [(2, i - 5, i) for i in range(5, 8)]:
        full = texts[slot] + tuple(tree[j] for j in path_to(TREE, i))
        close(rows[slot].logits[row], expected(full)[-1])
    path = path_to(TREE, 6)
    full = texts[0] + tuple(tree[j] for j in path)
    assert backend.keep(0, 11, [11 + j for j in path]) == len(full)
    assert backend.keep(2, 5, [5 + 3]) == 6
    assert backend.length(1) == 6
    ends = backend.forward([feed(0, (5, 6), 2), feed(2, (9, *tree[:3]), 2, torch.tensor([-1, 0, 0, 1]))])
    close(ends[0].logits, expected((*full, 5, 6))[-2:])
    close(ends[1].logits[0], expected((*texts[2], tree[3], 9, tree[1]))[-1])
    close(ends[1].logits[1], expected((*texts[2], tree[3], 9, tree[0], tree[2]))[-1])


@pytest.mark.parametrize("name", ["llama", "gemma2", "mistral"])
def test_a_path_that_is_none_keeps_less(name):
    make, expected, close = case(name)
    tokens, tree = text(40, 9), text(41, 8)

    def after(length: int, path: list[int]) -> tuple[HF, int]:
        backend = make()
        backend.forward([feed(0, tokens, 0)])
        backend.forward([feed(0, tree, 1, TREE)])
        return backend, backend.keep(0, length, path)

    assert after(9, [9 + 0, 9 + 2, 9 + 6])[1] == 11  # 6 hangs on 5, not on 2
    assert after(9, [9 + 1])[1] == 9
    assert after(99, [])[1] == 11  # 2 is not a child of 1
    assert after(4, [9])[1] == 4
    backend, left = after(9, [9 + 3, 9 + 7, 9 + 4])
    assert left == 11
    close(backend.forward([feed(0, (1,), 1)])[0].logits, expected((*tokens, tree[3], tree[7], 1))[-1:])


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma2", "mamba"])
def test_the_head_sees_wanted_rows_only(name):
    backend = case(name).make()
    seen = []
    hook = backend.model.get_output_embeddings().register_forward_hook(lambda _, args, __: seen.append(args[0].shape[1]))
    try:
        backend.forward([feed(0, text(1, 30), 0), feed(1, text(2, 9), 0)])
        assert sum(seen) == 0
        backend.forward([feed(0, text(3, 6), 3), feed(1, text(4, 3), 1), feed(2, text(4, 3), 0)])
        assert sum(seen) == 4
    finally:
        hook.remove()


@pytest.mark.parametrize("name", ["llama", "qwen2-window", "gemma3", "mamba", "llama-replay"])
def test_taps_are_the_hidden_states_of_every_fed_token(name):
    taps = (0, 1, -1)
    backend = HFReplay(model(name), taps=taps) if name.endswith("replay") else wrap(model(name), taps=taps)
    assert case(name).make().forward([feed(0, (1, 2), 1)])[0].hidden == {}
    tokens, other = text(8, 14), text(9, 6)
    backend.forward([feed(1, other[:4], 0)])
    first = backend.forward([feed(0, tokens[:9], 0)])[0].hidden
    rows = backend.forward([feed(0, tokens[9:], 1), feed(1, other[4:], 2)])
    with torch.no_grad():
        wholes = [model(name)(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states for ids in (tokens, other)]
    for tap in taps:
        close(torch.cat([first[tap], rows[0].hidden[tap]]), wholes[0][tap][0])
        close(rows[1].hidden[tap], wholes[1][tap][0, 4:])


@pytest.mark.parametrize("name", ["llama", "mamba"])
def test_rows_can_be_used_in_training(name):
    rows = case(name).make().forward([feed(0, (1, 2, 3), 2)])[0].logits
    weight = torch.ones(_V, requires_grad=True)
    (rows @ weight).sum().backward()
    torch.testing.assert_close(weight.grad, rows.sum(0))


@pytest.mark.parametrize("name", ["llama", "gemma2", "mistral"])
def test_the_model_stays_what_it_was(name):
    own, tokens = model(name), text(1, 20)
    before = own.config._attn_implementation
    backend = HF(own)
    backend.forward([feed(0, tokens, 0)])
    with pytest.raises(ValueError, match="token ids"):
        backend.forward([feed(0, (1, _V), 1)])
    assert backend.length(0) == 20
    assert own.config._attn_implementation == before
    with torch.no_grad():
        close(own(input_ids=torch.tensor([tokens])).logits[0], oracle(name, tokens))


@pytest.mark.parametrize("name", ["llama", "mamba", "bart"])
def test_empty_feeds(name):
    backend = case(name).make()
    assert backend.forward([]) == []
    assert backend.forward([feed(0, (), 0)])[0].logits.shape == (0, _V)
    rows = backend.forward([feed(0, (), 0), feed(1, (1, 2), 1)])
    assert [len(row.logits) for row in rows] == [0, 1]
    close(rows[1].logits, oracle(name, (1, 2))[-1:])


BAD = {
    "once": [feed(0, (1,), 1), feed(0, (2,), 1)],
    "cannot be had": [feed(0, (1, 2), 3)],
    "parents": [feed(0, (1, 2), 1, torch.tensor([-1]))],
    "more than the 128": [feed(0, (1,) * 129, 1)],
    r"in \[0, 48\)": [feed(0, (1, -1), 1)],
    "encoder": [Feed(0, torch.tensor([1]), 1, None, torch.tensor([1]))],
}


@pytest.mark.parametrize("name", ["llama", "mamba"])
@pytest.mark.parametrize("message", BAD)
def test_bad_feeds_change_nothing(name, message):
    backend = case(name).make()
    with pytest.raises(ValueError, match=message):
        backend.forward(BAD[message])
    assert backend.length(0) == 0
    close(backend.forward([feed(0, (1, 2), 2)])[0].logits, oracle(name, (1, 2)))


def test_a_tree_must_be_decided_before_more_is_fed():
    backend = case("llama").make()
    backend.forward([feed(0, (1, 2), 1, torch.tensor([-1, -1]))])
    with pytest.raises(ValueError, match="keep"):
        backend.forward([feed(0, (1,), 1)])
    assert backend.keep(0, 0, [1]) == 1
    close(backend.forward([feed(0, (3,), 1)])[0].logits, oracle("llama", (2, 3))[-1:])


@pytest.mark.parametrize("name", [*RECURRENT, "t5", "bart"])
def test_a_running_state_reads_no_trees(name):
    backend = case(name).make()
    with pytest.raises(ValueError, match="tree"):
        backend.forward([feed(0, (1, 2), 1, torch.tensor([-1, -1]))])
    close(backend.forward([feed(0, (1, 2), 1, torch.tensor([-1, 0]))])[0].logits, oracle(name, (1, 2))[-1:])


@pytest.mark.parametrize("name", RECURRENT)
def test_replay_goes_on_although_every_draft_is_rejected(name):
    """The state that is gone back to moves on, so the tokens that are read again stay few."""
    make, expected, close = case(name)
    backend, tokens = make(), text(1, 4)
    for turn in range(20):
        start = backend.length(0)
        full = (*tokens, *text(turn, 3))
        rows = backend.forward([feed(0, full[start:], 4)])[0].logits
        close(rows, expected(full)[-4:])
        backend.keep(0, len(tokens))
        tokens = (*tokens, turn)
        assert len(tokens) - backend.length(0) <= 12


@pytest.mark.parametrize("taken", [*CACHES, None])
def test_what_a_model_calls_its_cache(taken: str | None) -> None:
    """By its signature: transformers has changed the name, and models with code of their own have theirs."""

    def forward(**given: Any) -> None: ...

    names = ["input_ids", *filter(None, [taken]), "use_cache"]
    forward.__signature__ = Signature([Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in names])  # type: ignore[attr-defined]
    assert cache_name(SimpleNamespace(forward=forward)) == taken


def test_wrap_chooses_and_refuses():
    assert isinstance(wrap(model("mistral")), HF)
    assert isinstance(wrap(model("mamba")), HFReplay)
    with pytest.raises(ValueError, match="MambaForCausalLM cannot use the pooled cache"):
        HF(model("mamba"))
    assert isinstance(wrap(model("t5")), HFSeq2Seq)
    for maker in (HF, HFReplay):
        with pytest.raises(ValueError, match="encoder-decoder|decoder-only"):
            maker(model("t5"))
    with pytest.raises(ValueError, match="must be an encoder-decoder model"):
        HFSeq2Seq(model("llama"))


def test_visible_by_slot_ancestors_and_window():
    chain = Segment(0, 3, 0, 2, None, None)
    assert visible(chain, None).int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert visible(chain, 2).int().tolist() == [[0, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 1]]
    parents = torch.tensor([-1, -1, 0])
    seen = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 0, 1]]).bool()
    fork = Segment(0, 3, 0, 2, depths(parents), seen)
    assert visible(fork, None).int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 1, 0, 1]]
    assert visible(fork, 2).int().tolist() == [[0, 1, 1, 0, 0], [0, 1, 0, 1, 0], [0, 0, 1, 0, 1]]


def test_paths_of_a_region():
    region = Region(0, 64, length=6, tree=(1, 1, 2, 4))  # entries 0 1, then 2 and 3 after 1, 4 after 2, 5 after 4
    assert region.path(2, [2, 4, 5]) == (2, [2, 4, 5])
    assert region.path(2, [3, 4]) == (2, [3])
    assert region.path(9, []) == (3, [])
    assert region.path(1, [1, 3]) == (1, [1, 3])


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 300)), max_size=40))
@settings(deadline=None, max_examples=60)
def test_regions_never_overlap_and_moves_keep_the_entries(steps):
    """A buffer of (slot, entry) marks is written and moved as the cache does it."""
    regions, buffer = Regions(), [None] * 20_000
    for slot, need in steps:
        if need == 0:
            regions.slots.pop(slot, None)
            continue
        move = regions.reserve(slot, need)
        if move:
            buffer[move.target : move.target + move.rows] = buffer[move.source : move.source + move.rows]
        region = regions.slots[slot]
        region.length = need
        buffer[region.start : region.start + need] = [(slot, i) for i in range(need)]
        for other, r in regions.slots.items():
            assert buffer[r.start : r.start + r.length] == [(other, i) for i in range(r.length)]
            assert r.length <= r.room
            assert r.start + r.room <= regions.end


needs_llamacpp = pytest.mark.skipif(not GGUF, reason="llama-cpp-python is not installed")


@needs_llamacpp
@pytest.mark.parametrize("name", GGUF)
def test_a_memory_that_grows_holds_what_it_held(name, monkeypatch):
    """Many slots, one of which holds an undecided tree, and marks of running states, in a memory that is full at once."""
    monkeypatch.setattr("draftwise.backends.llamacpp._CELLS", 1)
    make, expected, close = case(name)
    backend = make()
    texts = {slot: text(60 + slot, 110) for slot in range(4)}
    for slot, tokens in texts.items():
        backend.forward([feed(slot, tokens[:100], 1)])
    ends = backend.forward([feed(slot, tokens[100:], 10) for slot, tokens in texts.items()])
    close(torch.cat([row.logits for row in ends]), torch.cat([expected(tokens)[-10:] for tokens in texts.values()]))
    for slot, tokens in texts.items():
        backend.keep(slot, 105)
        rows = backend.forward([feed(slot, tokens[backend.length(slot) :], 2)])[0].logits
        close(rows, expected(tokens)[-2:])
    if name not in RECURRENT:
        backend.free(3)
        backend.forward([feed(0, text(70, 3), 0, torch.tensor([-1, 0, 0]))])
        for slot in (3, 4, 5):
            backend.forward([feed(slot, text(80 + slot, 120), 1)])
        assert backend.keep(0, 110, [110, 112]) == 112
        tokens = (*texts[0], text(70, 3)[0], text(70, 3)[2], 4)
        close(backend.forward([feed(0, (4,), 1)])[0].logits, expected(tokens)[-1:])


@needs_llamacpp
def test_what_llamacpp_refuses(tmp_path):
    from draftwise.backends.llamacpp import LlamaCpp

    with pytest.raises(ValueError, match="there is no file"):
        LlamaCpp(tmp_path / "none.gguf")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF and then nothing of use")
    with pytest.raises(ValueError, match="cannot load .*broken.gguf.*truncated"):
        LlamaCpp(tmp_path / "broken.gguf")
    wrong = (({"cache": "f8"}, "'f8': possible are f32, f16, q8_0"), ({"slots": 300}, "256"), ({"threads": 0}, "threads must be at least 1"))
    for options, message in wrong:
        with pytest.raises(ValueError, match=message):
            LlamaCpp(gguf_file("qwen2-gguf"), **options)
    backend = LlamaCpp(gguf_file("qwen2-gguf"), ctx=32, slots=2, threads=1)
    assert (backend.max_length, backend.eos_token_id) == (32, (2,))
    with pytest.raises(ValueError, match="slot 2 is not among the 2"):
        backend.forward([feed(2, (1,), 1)])
    with pytest.raises(ValueError, match="more than the 32"):
        backend.forward([feed(0, (1,) * 33, 1)])
    with pytest.raises(ValueError, match="trees of 65 leaves"):
        case("qwen2-gguf").make().forward([feed(0, (1,) * 66, 1, torch.tensor([-1] + [0] * 65))])


@needs_llamacpp
def test_ids_of_llamacpp_come_back():
    """Trees and marks without end: no spare id is lost."""
    for name in ("qwen2-gguf", "mamba-gguf"):
        backend = case(name).make()
        spare = sorted(backend._spare)
        for turn in range(40):
            backend.forward([feed(turn % 4, text(turn, 3), 3, None if name in RECURRENT else torch.tensor([-1, 0, 0]))])
            backend.keep(turn % 4, turn % 3)
            if turn % 5 == 0:
                backend.free(turn % 4)
        for slot in range(4):
            backend.free(slot)
        assert sorted(backend._spare) == spare


def test_who_has_a_lean_pass():
    assert [name for name in ATTENTION if not unfit(tiny.model(name))] == ["llama", "qwen2", "qwen3"]
    with pytest.raises(ValueError, match="PhiForCausalLM has no lean pass: it is none of Llama"):
        Lean(tiny.model("phi"), product)
    assert "window" in unfit(tiny.model("mistral")) and "gelu" in unfit(tiny.model("llama", hidden_act="gelu"))
    assert "dynamic" in unfit(tiny.model("llama", rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}))
