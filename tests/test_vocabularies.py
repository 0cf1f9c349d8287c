"""Two tokenizers over one text: forms, what is shared, and reading a growing text in the other's ids."""

from __future__ import annotations

import random

import pytest

from draftwise.vocabularies import Pair, Reading, Vocabulary, common, whole, window
from toy_tokenizers import byte_level, letters, unigram, words

BYTES = byte_level(["t h", "th e", "Ġ the", "Ġ a"])
PIECES = unigram(["\u2581", "\u2581the", "the", "t", "h", "e", "a", "\u2581a", "é"])
SPACED = unigram(["\u2581", "\u2581the", "the", "t", "h", "e", "a", "\u2581a", "é"], begins_with_space=True)
WORDS = words(["the", "a", "t"])
ALL = {"bytes": BYTES, "pieces": PIECES, "spaced": SPACED, "words": WORDS}


def named(vocabulary: Vocabulary, ids: list[int]) -> list[str]:
    return [vocabulary.names[i] for i in ids]


@pytest.mark.parametrize("tokenizer", [BYTES, PIECES, SPACED], ids=["bytes", "pieces", "spaced"])
@pytest.mark.parametrize("text", ["the a", " the a", "th\u00e9", "\n the", "\u65e5\u672c \U0001f600", "a\n\n  the"])
def test_a_text_comes_back_from_its_ids(tokenizer, text):
    vocabulary = Vocabulary(tokenizer)
    assert vocabulary.text(vocabulary.encode(text.encode())) == text.encode()


def test_no_space_is_added_in_the_middle_of_a_text():
    vocabulary = Vocabulary(SPACED)
    assert SPACED.encode("the", add_special_tokens=False) == [SPACED.get_vocab()["\u2581the"]]
    assert named(vocabulary, vocabulary.encode(b"the")) == ["the"]
    assert named(vocabulary, vocabulary.encode(b" the")) == ["\u2581the"]


def test_forms_of_each_family():
    assert [Vocabulary(t).text([t.get_vocab()[name]]) for t, name in ((BYTES, "Ġthe"), (PIECES, "\u2581the"), (WORDS, "the"))] == [b" the"] * 3
    assert Vocabulary(PIECES).text([PIECES.get_vocab()["<0xC3>"]]) == b"\xc3"
    assert Vocabulary(BYTES).text([BYTES.get_vocab()["Ã"]]) == b"\xc3"


def test_what_begins_every_text_is_known():
    inner = letters("ab")
    inner.add_special_tokens({"bos_token": "<s>"})
    from tokenizers.processors import TemplateProcessing

    inner.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", inner.bos_token_id)])
    assert Vocabulary(inner).opening == (inner.bos_token_id,)
    assert Vocabulary(letters("ab")).opening == ()


def test_shared_is_one_to_one_and_by_form():
    pair = Pair(Vocabulary(BYTES), Vocabulary(PIECES))
    ours, theirs = BYTES.get_vocab(), PIECES.get_vocab()
    assert pair.shared[ours["Ġthe"]] == theirs["\u2581the"] and pair.shared[ours["the"]] == theirs["the"]
    assert pair.shared[ours["Ċ"]] == theirs["<0x0A>"]  # a whole character
    assert ours["Ã"] not in pair.shared  # half of one: the draft has it for what it lacks, the target for everything
    assert pair.shared[ours["<end>"]] == theirs["</s>"]
    assert len(set(pair.shared.values())) == len(pair.shared)
    assert ours["th"] not in pair.shared
    assert pair.shared[ours["t"]] == theirs["t"] > theirs["<0x74>"]  # the letter itself, not the byte of it that is there too


def test_bytes_of_two_that_fall_back_are_shared():
    pair = Pair(Vocabulary(PIECES), Vocabulary(SPACED))
    assert PIECES.get_vocab()["<0xC3>"] in pair.shared and pair.same and pair.cover == 1


def test_how_much_they_share():
    assert Pair(Vocabulary(letters("abc")), Vocabulary(letters("xyz"))).shares_text is False
    assert Pair(Vocabulary(words(["one", "two"])), Vocabulary(words(["three"]))).shares_text is False
    assert Pair(Vocabulary(words(["one", "two"])), Vocabulary(words(["two"]))).shares_text is True
    assert Pair(Vocabulary(letters("ab", ["a b"])), Vocabulary(letters("xab"))).shares_text is True
    apart = Pair(Vocabulary(BYTES), Vocabulary(WORDS))
    assert apart.shares_text and apart.cover < 0.1
    assert Pair(Vocabulary(BYTES), Vocabulary(byte_level(shift=3))).cover > 0.8


@pytest.mark.parametrize("target", ALL)
@pytest.mark.parametrize("draft", ALL)
def test_a_text_that_grows_and_shrinks_reads_as_from_scratch(target, draft):
    pair, draw = Pair(Vocabulary(ALL[target]), Vocabulary(ALL[draft])), random.Random(f"{target}{draft}")
    reading, tokens, width = Reading(pair), [], len(ALL[target])
    for _ in range(60):
        del tokens[len(tokens) - draw.randrange(min(6, len(tokens) + 1)) :]
        tokens += [draw.choice([draw.randrange(width), draw.randrange(width - 5, width)]) for _ in range(draw.randrange(9))]
        assert reading.read(tokens) == Reading(pair).read(tokens)


def test_only_the_end_is_read_again(monkeypatch):
    pair = Pair(Vocabulary(BYTES), Vocabulary(PIECES))
    reading, text = Reading(pair), Vocabulary(BYTES).encode(b"the a the a the a the")
    reading.read(text)
    seen = []
    monkeypatch.setattr(Pair, "segment", lambda self, tokens: seen.append(list(tokens)) or [0])
    reading.read([*text, BYTES.get_vocab()["a"]])
    assert seen == [[BYTES.get_vocab()["Ġthe"], BYTES.get_vocab()["a"]]]


def test_canonical_text_is_read_as_the_draft_writes_it():
    pair = Pair(Vocabulary(BYTES), Vocabulary(PIECES))
    tokens = [BYTES.get_vocab()[name] for name in ("Ġ", "t", "h", "e", "Ġ", "th", "e", "<end>", "a")]
    assert named(pair.draft, Reading(pair).read(tokens)) == ["\u2581the", "\u2581the", "</s>", "a"]


def test_a_special_token_of_the_target_alone_is_read_as_it_is_called():
    target = letters("ab<>x")
    target.add_special_tokens({"additional_special_tokens": ["<x>"]})
    pair = Pair(Vocabulary(target), Vocabulary(letters("<>xba")))
    assert Reading(pair).read([target.get_vocab()[name] for name in ("a", "<x>", "b")]) == [4, 0, 2, 1, 3]


def test_a_character_in_halves_waits():
    pair = Pair(Vocabulary(BYTES), Vocabulary(PIECES))
    tokens = [BYTES.get_vocab()[name] for name in ("a", "Ã", "©")]
    assert [named(pair.draft, Reading(pair).read(tokens[:n])) for n in (1, 2, 3)] == [["a"], ["a"], ["a", "é"]]


@pytest.mark.parametrize(
    ("text", "length"),
    [(b"", 0), (b"a", 1), (b"a\xc3", 1), (b"a\xc3\xa9", 3), (b"\xe2\x82", 0), (b"\xf0\x9f\x98", 0), (b"\xf0\x9f\x98\x80", 4), (b"\x80\x80", 2)],
)
def test_unfinished_characters(text, length):
    assert whole(text) == length


def test_common_beginnings_and_windows():
    assert [common([1, 2, 3], other) for other in ([1, 2, 3, 4], [1, 2], [1, 5], [], [9])] == [3, 2, 1, 0, 0]
    starts = [window(range(n), 10) for n in range(30)]
    assert starts[:11] == [0] * 11 and starts[11:16] == [5] * 5 and starts[16] == 10
    assert all(n - start <= 10 for n, start in enumerate(starts))
