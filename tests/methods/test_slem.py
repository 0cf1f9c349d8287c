"""SLEM and UAG: what a draft wrote as target tokens, boundaries, halves of characters, and figures in target tokens."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

import draftwise
from draftwise import catalog
from draftwise.backends.table import Table
from draftwise.context import Context
from draftwise.engine import Engine
from draftwise.methods.slem import Written, settled
from draftwise.methods.tli import Translated
from draftwise.methods.uag import UAG, aligned, beyond
from draftwise.noise import Noise
from draftwise.protocols import Ask
from draftwise.types import Draft, Outcome, Rows, Sampling, Text
from draftwise.vocabularies import Pair, Vocabulary
from tables import run
from tiny_folders import save
from toy_tokenizers import byte_level, crossed, letters, unigram, words

BYTES = byte_level(["t h", "th e", "Ġ the", "Ġ a"])
PIECES = unigram(["\u2581", "\u2581the", "the", "t", "h", "e", "a", "\u2581a", "é"])
PAIR = Pair(Vocabulary(BYTES), Vocabulary(PIECES))


def ids(tokenizer: object, *names: str) -> list[int]:
    vocab = tokenizer.get_vocab()
    return [vocab[name] for name in names]


def named(tokens: object, tokenizer: object = BYTES) -> list[str]:
    return list(tokenizer.convert_ids_to_tokens([int(token) for token in tokens]))


def text(tokens: list[int], id: int = 0, **sampling: object) -> Text:
    return Text(id, id, tokens, Sampling(**sampling), Noise(0))


def scripted(writes: Mapping[str, str], target: object = BYTES, draft: object = PIECES) -> Context:
    """A draft that writes, after each of its tokens, the one that `writes` names, with probability 0.8."""
    width = len(draft)
    rows = {}
    for last, following in writes.items():
        law = [0.2 / (width - 1)] * width
        law[draft.get_vocab()[following]] = 0.8
        rows[(draft.get_vocab()[last],)] = law
    view = Translated(Table(width, order=1, rows=rows), Pair(Vocabulary(target), Vocabulary(draft)), len(target), "slem")
    return Context(Table(len(target)), view, len(target))


def propose(drafter: str, context: Context, tokens: list[int], n: int = 3, more: object = None, **sampling: object) -> Draft:
    (draft,) = catalog.create("drafter", drafter, context).propose([Ask(text(tokens, **sampling), n, more)])
    return draft


@pytest.mark.parametrize("drafter", ["slem", "uag"])
def test_one_token_of_the_draft_may_be_several_of_the_target(drafter: str) -> None:
    plain = byte_level()  # no merges: a token a byte
    draft = propose(drafter, scripted({"a": "\u2581the", "\u2581the": "\u2581a"}, plain), ids(plain, "a"), 5)
    assert named(draft.tokens, plain) == ["Ġ", "t", "h", "e", "Ġ"]
    assert [step.prob for step in draft.steps] == pytest.approx([0.8, 1, 1, 1, 0.8])
    assert [step.entropy > 0 for step in draft.steps] == [True, False, False, False, True]
    assert draft.probs is None and draft.logits is None and draft.origin == drafter


def test_several_tokens_of_the_draft_may_be_one_of_the_target() -> None:
    target, draft = letters("abcx", ["b c", "a bc"]), letters("abcx", ["a b"])
    context = scripted({"x": "ab", "ab": "c", "c": "x"}, target, draft)
    found = propose("slem", context, ids(target, "x"), 2, lambda steps: steps[-1].token != target.get_vocab()["x"])
    assert named(found.tokens, target) == ["abc", "x"]  # "a" and "b" are two tokens until "c" comes
    assert [step.prob for step in found.steps] == pytest.approx([0.8**2, 0.8]) == [step.top1 for step in found.steps]
    assert found.steps[0].top2 == pytest.approx(0.8 * 0.2 / 4)
    assert found.steps[0].entropy == pytest.approx(2 * found.steps[1].entropy)


def test_a_last_token_waits_until_it_is_settled() -> None:
    written = Written(ids(BYTES, "a"), ids(BYTES, "a"), b"", ids(PIECES, "\u2581", "t"), False)
    assert named(settled(PAIR, written)) == ["Ġ", "t"]  # as the draft ended a token there
    joined = written._replace(ids=ids(PIECES, "\u2581", "t", "h"))
    assert named(settled(PAIR, joined)) == ["Ġ"]  # "th" is two tokens of the draft: it may become "the"
    assert named(settled(PAIR, joined._replace(ended=True))) == ["Ġ", "th"]


def test_text_that_merges_with_the_committed() -> None:
    """The target has written "th"; the draft writes "e", and "the" would be one token."""
    tokens = ids(BYTES, "a", "Ġ", "th")
    written = Written(tokens, ids(BYTES, "Ġ", "th"), b"", ids(PIECES, "e", "\u2581a"), False)
    assert named(settled(PAIR, written)) == ["e", "Ġa"]  # committed tokens stay, the new text stands for itself
    assert named(aligned(10, PAIR, written)) == []  # "a", "Ġthe", "Ġa": on the only diagonal nothing is beyond the end
    assert named(aligned(10, PAIR, written._replace(ids=ids(PIECES, "e", "\u2581a", "\u2581a")))) == ["Ġa"]


def test_the_best_diagonal() -> None:
    assert beyond([1, 2, 3], [1, 2, 3, 4, 5]) == [4, 5]
    assert beyond([1, 2, 3], [2, 3, 4, 5]) == [4, 5]
    assert beyond([1, 2, 3], [9, 1, 2, 3, 4]) == [4]
    assert beyond([7, 8], [1, 2, 3]) == []
    assert beyond([1, 1, 1], [1, 1, 1, 1, 1]) == [1, 1]  # of equals the one that moves least
    assert beyond([1, 2], []) == []


@pytest.mark.parametrize("drafter", ["slem", "uag"])
def test_half_a_character(drafter: str) -> None:
    context = scripted({"a": "é", "é": "a"})
    assert named(propose(drafter, context, ids(BYTES, "a"), 3).tokens) == ["Ã", "©", "a"]
    assert named(propose(drafter, context, ids(BYTES, "a", "Ã"), 2).tokens) == ["©", "a"]  # the committed half is not written twice
    assert len(propose(drafter, context, ids(BYTES, "a", "â"), 2).tokens) == 0  # the draft writes another character


@pytest.mark.parametrize("drafter", ["slem", "uag"])
def test_what_no_tokenizer_writes_is_no_harm(drafter: str) -> None:
    """Any ids as committed text: bytes that are no character, special tokens, words in pieces."""
    draw = random.Random(0)
    for target, draft in ((BYTES, PIECES), (PIECES, BYTES), (words(["the", "a"]), PIECES), (BYTES, words(["the", "a"]))):
        context = crossed(target, draft)
        made = catalog.create("drafter", drafter, context)
        for i in range(30):
            tokens = [draw.randrange(len(target)) for _ in range(draw.randrange(1, 12))]
            (found,) = made.propose([Ask(text(tokens, i), 4)])
            assert len(found.tokens) <= 4 and all(0 <= token < len(target) for token in found.tokens.tolist())
            made.free(text(tokens, i))


@pytest.mark.parametrize("drafter", ["tli", "slem", "uag"])
@pytest.mark.parametrize(
    ("target", "draft"),
    [(BYTES, PIECES), (PIECES, BYTES), (letters("abc", ["a b", "b c"]), letters("cba", ["c a"])), (BYTES, words(["the", "a"]))],
    ids=["bytes-pieces", "pieces-bytes", "letters", "bytes-words"],
)
@pytest.mark.parametrize("length", ["fixed:n=4", "adasd"])
def test_greedy_text_is_plain_decodings(drafter: str, target: object, draft: object, length: str) -> None:
    context = crossed(target, draft, order=1)
    method = catalog.method("fixed", context, length=length, drafter=drafter)
    prompt = [1, 2, 0, 1]
    engine = Engine(context.target)
    assert engine.generate([prompt, prompt[::-1]], Sampling(max_tokens=50), method) == [
        run(context, "plain", tokens, max_tokens=50) for tokens in (prompt, prompt[::-1])
    ]


@pytest.mark.parametrize("drafter", ["tli", "slem", "uag"])
def test_what_was_read_before_changes_nothing(drafter: str) -> None:
    """At any moment of a request the draft is that of a drafter which meets the text for the first time."""
    target, draft = letters("abcd", ["a b", "c d", "b c"]), letters("dcba", ["a b", "b a", "d a"])
    context, draw = crossed(target, draft, order=3), random.Random(3)
    made, tokens, found = catalog.create("drafter", drafter, context), [0, 1, 2], 0
    for _ in range(60):
        (one,) = made.propose([Ask(text(tokens), 4, lambda _: True)])
        (other,) = catalog.create("drafter", drafter, crossed(target, draft, order=3)).propose([Ask(text(tokens), 4, lambda _: True)])
        assert one.tokens.tolist() == other.tokens.tolist() and one.steps == other.steps
        taken = draw.randrange(len(one.tokens) + 1)
        tokens += [*one.tokens[:taken].tolist(), draw.randrange(len(target))]
        (made._inner if drafter == "tli" else made).observe(text(tokens), one, Outcome([*range(taken)], tokens[-1], (), 0, Rows(torch.zeros(0), {})))
        found += taken
    assert found > 10


@pytest.mark.parametrize("drafter", ["slem", "uag"])
def test_equal_vocabularies_come_round_to_the_same_tokens(drafter: str) -> None:
    tokenizer = letters("abcdef")
    context = crossed(tokenizer, letters("abcdef"))
    made = catalog.create("drafter", drafter, context)
    plain = catalog.create("drafter", "draft-model", context._replace(draft=Table(6)))
    for i in range(20):
        tokens = [random.Random(i).randrange(6) for _ in range(9)]
        one, other = (some.propose([Ask(text(tokens, i), 5)])[0] for some in (made, plain))
        assert one.tokens.tolist() == other.tokens.tolist()
        assert [step[2:] for step in one.steps] == [pytest.approx(step[2:]) for step in other.steps]


def test_the_target_never_waits_for_a_draft_that_writes_nothing() -> None:
    context = scripted({"a": "<0xC3>", "<0xC3>": "<0xC3>"})
    assert len(propose("slem", context, ids(BYTES, "a"), 3).tokens) == 0
    assert context.draft.backend.forwards == 12  # it gives up


def test_options() -> None:
    with pytest.raises(ValueError, match="lookbehind must be at least 1 token, got 0"):
        UAG(scripted({}).draft, 0)
    made = catalog.create("drafter", "uag:lookbehind=3", scripted({"a": "a"}))
    assert made.lookbehind == 3


@pytest.mark.slow
@pytest.mark.parametrize("drafter", ["tli", "slem", "uag"])
def test_a_real_target_with_a_foreign_draft(drafter: str, tmp_path: Path) -> None:
    """SmolLM2 and, where the variable FOREIGN_DRAFT names one, a real draft; else a tiny one of bytes, which is seldom right."""
    from draftwise.commands.compare import compare, tolerance

    real = os.environ.get("FOREIGN_DRAFT")
    made = draftwise.load("smollm2", real or save(tmp_path / "bytes"), "fixed:n=3", drafter=drafter, dtype="float32", device="cpu")
    for prompt in ("def mean(values):\n    return", "A caf\u00e9 sells 3 cakes and 4 teas. Together they are"):
        plain, found = (made.generate(prompt, 48, method=method) for method in ("plain", None))
        difference = compare(made.engine.target, made.tokenizer.encode(prompt), plain.tokens, found.tokens)
        assert difference is None or difference.gap <= tolerance(made.engine.target)
        assert found.stats.drafted > 0
        assert not real or found.stats.accepted > 0
