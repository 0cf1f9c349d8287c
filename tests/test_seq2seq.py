"""Encoder-decoder targets under the engine: what is decoded is what transformers decodes, whatever drafts, and the encoder reads once."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, GenerationMixin

import tiny
from draftwise import Method, catalog
from draftwise.backends.hf import cache_name
from draftwise.backends.hf_replay import wrap
from draftwise.backends.hf_seq2seq import HFSeq2Seq
from draftwise.backends.table import Table
from draftwise.context import Context
from draftwise.engine import Engine
from draftwise.methods.cascade import Cascade
from draftwise.methods.coupled import Coupled
from draftwise.methods.draft_model import DraftModel
from draftwise.methods.fixed import Fixed
from draftwise.methods.none import NoDraft
from draftwise.methods.prompt_lookup import PromptLookup
from draftwise.methods.speculative import Speculative
from draftwise.noise import Noise
from draftwise.protocols import Ask, Encodes
from draftwise.types import Feed, Outcome, Rows, Sampling, Text

NAMES = list(tiny.SEQ2SEQ)
TEXTS = [name for name in NAMES if name != "whisper"]
PLAIN = Method(Fixed(n=0), Coupled(), NoDraft())
NEW = 14
_V = tiny.VOCAB
NOBODY = Outcome([], 5, (), 0, Rows(torch.zeros(0), {}))  # of whose draft nothing was accepted


@cache
def model(name: str, seed: int = 0) -> Any:
    torch.set_num_threads(1)
    return tiny.seq2seq(name, seed) if name in tiny.SEQ2SEQ else tiny.model(name, seed)


def start(name: str) -> list[int]:
    return [model(name).config.decoder_start_token_id]


def sources(name: str, n: int = 3) -> list[Tensor]:
    """Of different lengths, where the encoder reads any."""
    return [tiny.source(name, seed, 3 + 8 * seed) for seed in range(n)]


@torch.no_grad()
def reference(name: str, source: Tensor, new: int = NEW) -> list[int]:
    """What transformers decodes greedily: Whisper by the general method, since its own adds timestamps and suppressed tokens; with a cache that makes
    its layers as they come, since transformers counts the encoder's where the decoder has more."""
    given = {"input_features": source[None]} if name == "whisper" else {"input_ids": source[None], "attention_mask": torch.ones(1, len(source))}
    given |= {"decoder_input_ids": torch.tensor([start(name)]), cache_name(model(name)): EncoderDecoderCache(DynamicCache(), DynamicCache())}
    out = GenerationMixin.generate(model(name), **given, max_new_tokens=new, do_sample=False, num_beams=1)
    return out[0, 1:].tolist()


def drafters(name: str) -> dict[str, Any]:
    return {
        "encoder-decoder": DraftModel(wrap(model(name, 1)), _V),
        "itself": DraftModel(wrap(model(name)), _V),
        "decoder": DraftModel(wrap(model("llama")), _V),
        "decoder with the source": DraftModel(wrap(model("llama")), _V, source=True),
        "recurrent with the source": DraftModel(wrap(model("mamba")), _V, source=True, chunk=4),
        "lookup": PromptLookup(),
        "cascade": Cascade(wrap(model(name, 1)), _V, PromptLookup(), Fixed(3), Speculative()),
        "cascade of a decoder": Cascade(wrap(model("llama")), _V, PromptLookup(), Fixed(3), Speculative()),
        "table": DraftModel(Table(_V), _V),
    }


def decode(name: str, method: Method, given: list[Tensor], chunk: int = 256, **sampling: Any) -> list[list[int]]:
    engine = Engine(wrap(model(name)), chunk)
    wanted = Sampling(**{"max_tokens": NEW, "stop_ids": (2,), **sampling})
    return engine.generate([start(name)] * len(given), wanted, method, given)


@pytest.mark.parametrize("name", NAMES)
def test_greedy_is_that_of_transformers_whatever_drafts(name):
    given = sources(name)
    plain = decode(name, PLAIN, given)
    assert plain == [reference(name, source) for source in given]
    assert len({tuple(tokens) for tokens in plain}) > 1, "the source decides"
    for label, drafter in drafters(name).items():
        assert decode(name, Method(Fixed(n=4), Speculative(), drafter), given) == plain, label
    assert decode(name, Method(Fixed(n=4), Speculative(), drafters(name)["encoder-decoder"]), given, chunk=3) == plain


@pytest.mark.parametrize("name", NAMES)
def test_a_coupled_sample_is_that_of_plain_decoding(name):
    given = sources(name)
    options = {"temperature": 0.9, "seed": 5, "stop_ids": ()}
    plain = decode(name, PLAIN, given, **options)
    assert len({tuple(tokens) for tokens in plain}) > 1
    some = drafters(name)
    for label in ("encoder-decoder", "decoder with the source", "lookup", "cascade"):
        assert decode(name, Method(Fixed(n=3), Coupled(), some[label]), given, **options) == plain, label
    assert [decode(name, PLAIN, [source], **options)[0] for source in given] == plain


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_is_its_texts_one_by_one(name):
    given = sources(name)
    method = Method(Fixed(n=4), Speculative(), drafters(name)["encoder-decoder"])
    assert decode(name, method, given) == [decode(name, method, [source])[0] for source in given]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_target_as_its_own_draft_is_accepted_whole(name, temperature):
    engine = Engine(wrap(model(name)))
    method = Method(Fixed(n=4), Speculative(), drafters(name)["itself"])
    sequence = engine.add(start(name), Sampling(max_tokens=20, temperature=temperature, seed=1), method, tiny.source(name))
    list(engine.stream())
    assert sum(r.drafted for r in sequence.rounds) == sum(r.accepted for r in sequence.rounds) == 16


@pytest.mark.parametrize("name", ["t5", "bart", "whisper"])
def test_the_encoder_reads_once_until_the_slot_is_empty(name):
    backend, source, other = wrap(model(name)), tiny.source(name), tiny.source(name, 1)
    passes = []
    hook = backend.model.get_encoder().register_forward_hook(lambda *_: passes.append(1))
    try:
        first = backend.forward([Feed(0, torch.tensor([1, 5, 6]), 2, source=source)])[0].logits
        backend.keep(0, 1)
        again = backend.forward([Feed(0, torch.tensor([5, 6]), 2)])[0].logits  # no source is needed, and a given one is not read
        assert len(passes) == 1
        torch.testing.assert_close(again, first, atol=1e-5, rtol=1e-5)
        backend.forward([Feed(0, torch.tensor([7]), 1, source=other)])
        assert len(passes) == 1
        assert backend.keep(0, 0) == 0
        with pytest.raises(ValueError, match=r"slot 0: .* needs an encoder input \(source\)"):
            backend.forward([Feed(0, torch.tensor([1]), 1)])
        changed = backend.forward([Feed(0, torch.tensor([1, 5, 6]), 2, source=other)])[0].logits
        assert len(passes) == 2
        assert not torch.allclose(changed, first, atol=1e-3)
    finally:
        hook.remove()


@pytest.mark.parametrize("name", ["t5", "bart", "whisper"])
def test_slots_have_sources_of_their_own(name):
    backend, given = wrap(model(name)), sources(name)
    tokens = torch.tensor([1, 5, 6, 7])
    together = backend.forward([Feed(i, tokens[: 2 + i], 1, source=source) for i, source in enumerate(given)])
    for i, source in enumerate(given):
        with torch.no_grad():
            alone = model(name)(**{backend.reads: source[None]}, decoder_input_ids=tokens[None, : 2 + i]).logits[0, -1:]
        torch.testing.assert_close(together[i].logits, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["mt5", "marian", "whisper"])
def test_taps_are_the_decoders_hidden_states(name):
    backend, source, tokens = wrap(model(name), taps=(0, 1, -1)), tiny.source(name), torch.tensor([3, 5, 6, 7, 8])
    first = backend.forward([Feed(0, tokens[:2], 0, source=source)])[0].hidden
    rest = backend.forward([Feed(0, tokens[2:], 1)])[0].hidden
    with torch.no_grad():
        states = model(name)(**{backend.reads: source[None]}, decoder_input_ids=tokens[None], output_hidden_states=True).decoder_hidden_states
    for tap in (0, 1, -1):
        torch.testing.assert_close(torch.cat([first[tap], rest[tap]]), states[tap][0], atol=1e-5, rtol=1e-5)
    assert {tap: len(rows) for tap, rows in backend.forward([Feed(0, tokens[:0], 0)])[0].hidden.items()} == {0: 0, 1: 0, -1: 0}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("where", ["target", "draft"])
def test_a_step_that_fails_is_made_up_for(name, where, monkeypatch):
    """Wherever it happens; the slots are then empty, and encoder and decoder read again."""
    given = sources(name, 2)
    expected = decode(name, PLAIN, given)
    target, helper = wrap(model(name)), wrap(model(name, 1))
    engine = Engine(target)
    method = Method(Fixed(n=3), Speculative(), DraftModel(helper, _V))
    texts = [engine.add(start(name), Sampling(max_tokens=NEW, stop_ids=(2,)), method, source) for source in given]
    broken = target if where == "target" else helper
    forward = broken.forward

    def fail(feeds):
        forward(feeds)
        raise KeyboardInterrupt

    for _ in range(2):
        engine.step()
        monkeypatch.setattr(broken, "forward", fail)
        with pytest.raises(KeyboardInterrupt):
            engine.step()
        monkeypatch.undo()
        assert [backend.length(slot) for backend in (target, helper) for slot in (0, 1)] == [0] * 4
    list(engine.stream())
    assert [text.tokens[1:] for text in texts] == expected


def test_a_pass_that_breaks_off_leaves_its_slot_empty(monkeypatch):
    backend, source = wrap(tiny.seq2seq("bart")), tiny.source("bart")
    feed = Feed(0, torch.tensor([1, 5]), 2, source=source)
    first = backend.forward([feed])[0].logits
    backend.keep(0, 1)
    last = backend.model.get_decoder().layers[-1]
    monkeypatch.setattr(last, "forward", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        backend.forward([Feed(0, torch.tensor([7]), 1)])
    monkeypatch.undo()
    assert backend.length(0) == 0
    torch.testing.assert_close(backend.forward([feed])[0].logits, first, atol=1e-6, rtol=1e-6)


def test_lookup_copies_from_the_source():
    """A source whose words the target repeats; the text alone has nothing to copy from yet."""
    source = torch.tensor([10, 11, 12, 13, 14, 2])
    text = Text(0, 0, [0, 10, 11], Sampling(stop_ids=(2,)), Noise(0), source)
    drafter = PromptLookup()

    def draft(text: Text, n: int = 9) -> list[int]:
        return drafter.propose([Ask(text, n)])[0].tokens.tolist()

    assert draft(text._replace(source=None, id=1)) == []
    assert draft(text) == [12, 13, 14, 2]
    assert draft(text, 2) == [12, 13]
    assert drafter.lag(text) == 0
    text.tokens.extend([14, 30, 31, 0])
    assert drafter.lag(text) == 4
    assert draft(text) == [10, 11, 14, 30, 31, 0]  # of the text itself
    text.tokens.append(2)
    assert draft(text) == [], "what ends the source goes on nowhere: no n-gram spans source and text"
    drafter.observe(text._replace(tokens=text.tokens[:4]), drafter.propose([Ask(text, 0)])[0], NOBODY)  # a cascade takes tokens back
    assert draft(text._replace(tokens=[0, 10, 11, 14])) == [2]
    assert draft(text._replace(id=2, source=torch.rand(4, 12))) == [], "features have no words"
    drafter.free(text)
    assert drafter.lag(text) == len(text.tokens)


def test_a_copied_source_ends_where_it_ends():
    text = Text(0, 0, [0, 10], Sampling(), Noise(0), torch.tensor([9, 10, 11]))
    assert PromptLookup().propose([Ask(text, 9)])[0].tokens.tolist() == [11]


def test_ids_of_the_encoders_own_vocabulary_are_not_copied():
    """Marian's languages may have one vocabulary each: an id of the source is then no token of the text, and may not exist there."""
    marian = wrap(tiny.seq2seq("marian", decoder_vocab_size=30, share_encoder_decoder_embeddings=False, decoder_start_token_id=29))
    assert (marian.vocab_size, marian.source_vocab, marian.shared, wrap(model("marian")).shared) == (30, 48, False, True)
    decoder, texts = DraftModel(Table(30), 30, source=True), []
    for drafter in (NoDraft(), PromptLookup(max_ngram=1), decoder, DraftModel(wrap(marian.model), 30)):
        engine = Engine(marian)
        source = torch.tensor([29, 47, 5, 40, *range(29), 46])
        texts.append(engine.add([29], Sampling(max_tokens=NEW), Method(Fixed(n=4), Speculative(), drafter), source))
        list(engine.stream())
    assert texts[0].text.foreign and texts[0].text.copyable() is None
    assert len({tuple(text.tokens) for text in texts}) == 1
    assert decoder._ahead(texts[0].text) == 0


def test_a_decoder_draft_reads_the_source_before_the_text():
    source, tokens = tiny.source("t5", n=6), [0, 5, 6]
    text = Text(0, 0, tokens, Sampling(), Noise(0), source)
    first = {}
    for chunk in (256, 2):
        backend = wrap(model("llama"))
        drafter = DraftModel(backend, _V, source=True, chunk=chunk)
        assert drafter.lag(text) == 9
        first[chunk] = drafter.propose([Ask(text, 2)])[0].tokens.tolist()
        with torch.no_grad():
            row = model("llama")(input_ids=torch.tensor([[*source.tolist(), *tokens]])).logits[0, -1]
        assert first[chunk][0] == int(row.argmax())
        assert backend.length(0) == 10  # the last draft token is never read
        drafter.observe(text, drafter.propose([Ask(text, 0)])[0], NOBODY)
        assert (backend.length(0), drafter.lag(text)) == (8, 1)
    assert first[256] == first[2]
    blind = DraftModel(wrap(model("llama")), _V)
    assert blind.lag(text) == 3


def test_a_draft_whose_encoder_cannot_read_the_source_rests():
    small = wrap(tiny.seq2seq("bart", max_position_embeddings=8))
    for drafter in (DraftModel(small, _V), Cascade(small, _V, PromptLookup(), Fixed(2), Speculative())):
        engine = Engine(wrap(model("t5")))
        texts = [engine.add([0], Sampling(max_tokens=12), Method(Fixed(n=2), Speculative(), drafter), tiny.source("t5", n=n)) for n in (5, 9)]
        list(engine.stream())
        assert sum(r.drafted for r in texts[0].rounds) > 0
        assert sum(r.drafted for r in texts[1].rounds) == 0
        assert [text.tokens[1:] for text in texts] == [reference("t5", tiny.source("t5", n=n), 12) for n in (5, 9)]


def test_the_encoders_time_is_no_measure_of_a_verification():
    engine = Engine(wrap(model("t5")))
    engine.add([0], Sampling(max_tokens=3), PLAIN, tiny.source("t5"))
    engine.step()
    assert not engine._costs(engine.target).verify_s
    engine.step()
    assert [rows for rows, _ in engine._costs(engine.target).verify_s] == [1]
    text = Text(0, 0, [0], Sampling(), Noise(0), tiny.source("t5"))
    drafter = DraftModel(wrap(model("t5", 1)), _V)
    assert drafter.lag(text) == 10
    drafter.propose([Ask(text, 1)])
    assert drafter.lag(text) == 0


BAD = {
    "bart": [
        (None, "BartForConditionalGeneration is an encoder-decoder model and needs an encoder input"),
        (torch.zeros(0, dtype=torch.long), "the encoder input is empty"),
        (torch.ones(129, dtype=torch.long), "has 129 tokens and the model's encoder reads 128 at most"),
        (torch.tensor([5, 48]), "outside the encoder's vocabulary of 48"),
        (torch.tensor([-1]), "outside the encoder's vocabulary"),
        (torch.tensor([[5, 6]]), r"one row of token ids, got int64 of shape \[1, 2\]"),
        (torch.rand(4), "one row of token ids, got float32"),
    ],
    "whisper": [
        (None, "needs an encoder input"),
        (torch.tensor([5, 6]), "reads input_features, not token ids"),
        (torch.rand(4, 11), r"reads input_features of shape \[4, 12\], got \[4, 11\]"),
        (torch.rand(1, 4, 12), "got"),
    ],
    "llama": [(torch.tensor([5]), "the target has no encoder")],
}


@pytest.mark.parametrize(("name", "source", "says"), [(name, *case) for name, cases in BAD.items() for case in cases])
def test_sources_that_cannot_be_read(name, source, says):
    backend = wrap(model(name))
    engine = Engine(backend)
    with pytest.raises(ValueError, match=says):
        engine.add([1], Sampling(), PLAIN, source)
    assert not engine.busy
    with pytest.raises(ValueError, match=says if name != "llama" else "without encoder"):
        backend.forward([Feed(0, torch.tensor([1]), 1, source=source)])
    assert backend.length(0) == 0


def test_a_decoder_that_cannot_be_read_in_parts_is_refused():
    """ProphetNet predicts from streams of n-grams, which its cache holds for one token at a time only."""
    shape = {"num_encoder_layers": 1, "num_decoder_layers": 1, "num_encoder_attention_heads": 2, "num_decoder_attention_heads": 2}
    config = transformers.ProphetNetConfig(vocab_size=_V, hidden_size=16, encoder_ffn_dim=16, decoder_ffn_dim=16, init_std=0.3, **shape)
    with pytest.raises(ValueError, match="ProphetNetForConditionalGeneration cannot be run here: read in parts"):
        wrap(transformers.ProphetNetForConditionalGeneration(config))


def test_only_models_with_an_encoder_encode():
    assert isinstance(wrap(model("t5")), Encodes)
    assert not any(isinstance(backend, Encodes) for backend in (wrap(model("llama")), wrap(model("mamba")), Table()))
    assert isinstance(wrap(model("whisper")), HFSeq2Seq) and wrap(model("whisper")).reads == "input_features"


def test_the_catalog_gives_a_drafter_its_source():
    context = Context(wrap(model("t5")), wrap(model("llama")), _V)
    assert catalog.create("drafter", "draft-model:source=true", context).source
    assert not catalog.create("drafter", "draft-model", context).source
