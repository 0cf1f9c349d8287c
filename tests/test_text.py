"""Streams of ids to text: whatever the cut, the text is that of decoding everything at once."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from draftwise.text import Detokenizer, StopStrings, difference, encode, is_batch, pieces, stop_ids

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>a\n{% endif %}"
)
EMOJI = "\U0001f600\U0001f601\U0001f600\U0001f601" * 3
CORPUS = ["the cat sat on the mat, the cat sat", "caf\u00e9 na\u00efve \u4f60\u597d\u4f60\u597d", EMOJI, "a  b\n\n c"] * 3
TEXTS = st.text(st.sampled_from("the cat\u00e9\u4f60\u597d\U0001f600\U0001f601\U0001f602\u200d\n  "), max_size=24)


def byte_level() -> PreTrainedTokenizerFast:
    """As GPT-2, Llama 3, Qwen and SmolLM2 have: merges that cross characters, among them emoji."""
    found = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    ends = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    found.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, special_tokens=ends, show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=found, eos_token="<|endoftext|>", chat_template=CHAT)


def byte_fallback() -> PreTrainedTokenizerFast:
    """As Llama 2 and Mistral have: spaces as a sign of their own, the first one dropped, unknown characters as single bytes."""
    signs = ["<unk>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "\u2581", *"thecasombn,", "\u2581t", "\u2581th", "\u2581the", "at"]
    merges = [("\u2581", "t"), ("\u2581t", "h"), ("\u2581th", "e"), ("a", "t")]
    found = Tokenizer(models.BPE({sign: i for i, sign in enumerate(signs)}, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    found.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    found.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=found, eos_token="</s>", unk_token="<unk>")


BYTE_LEVEL, BYTE_FALLBACK = byte_level(), byte_fallback()


def streamed(tokenizer: PreTrainedTokenizerFast, ids: list[int], cuts: list[int], context: list[int] | None = None) -> str:
    detokenizer, out, at = Detokenizer(tokenizer, context or ()), [], 0
    for cut in [*cuts, len(ids)]:
        out.append(detokenizer.push(ids[at : at + cut]))
        at += cut
    return "".join([*out, detokenizer.flush()])


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, BYTE_FALLBACK], ids=["byte-level", "byte-fallback"])
@given(text=TEXTS, cuts=st.lists(st.integers(0, 3), max_size=9))
def test_a_stream_is_the_whole_text(tokenizer, text, cuts):
    ids = tokenizer.encode(text)
    assert streamed(tokenizer, ids, cuts) == tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@given(ids=st.lists(st.integers(0, len(BYTE_LEVEL) - 1), max_size=30), cuts=st.lists(st.integers(0, 3), max_size=9))
def test_broken_bytes_come_out_as_in_one_piece(ids, cuts):
    assert streamed(BYTE_LEVEL, ids, cuts) == BYTE_LEVEL.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@given(ids=st.lists(st.integers(0, len(BYTE_LEVEL) - 1), max_size=90), cuts=st.lists(st.integers(0, 3), max_size=9))
def test_pieces_join_to_the_text_however_long_the_rubbish(ids, cuts):
    parts = pieces(BYTE_LEVEL, ids)
    assert len(parts) == len(ids)
    assert "".join(parts) == streamed(BYTE_LEVEL, ids, cuts)


def test_an_unfinished_character_waits():
    detokenizer = Detokenizer(BYTE_FALLBACK)
    ids = [BYTE_FALLBACK.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in "\u4f60\u597d".encode()]
    assert [detokenizer.push([i]) for i in ids] == ["", "", "\u4f60", "", "", "\u597d"]
    assert detokenizer.push(ids[:2]) == ""
    assert detokenizer.flush().strip("\ufffd") == ""
    assert detokenizer.flush() == ""


def test_a_long_run_of_single_bytes_stays_text():
    text = "\u4f60\u597d" * 40
    ids = [BYTE_FALLBACK.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in text.encode()]
    assert streamed(BYTE_FALLBACK, ids, []) == text


def test_the_window_stays_short():
    class Counting:
        longest = 0

        def decode(self, ids, **options):
            self.longest = max(self.longest, len(ids))
            return BYTE_LEVEL.decode(ids, **options)

    counting = Counting()
    Detokenizer(counting).push(BYTE_LEVEL.encode("the cat sat on the mat " * 50))
    assert counting.longest <= 3
    Detokenizer(counting).push([BYTE_LEVEL.convert_tokens_to_ids("\u00a2")] * 500)  # a byte that begins nothing
    assert counting.longest <= 33


def test_the_context_decides_about_the_first_space():
    ids = BYTE_FALLBACK.encode("the cat")
    before, after = ids[:1], ids[1:]
    assert BYTE_FALLBACK.convert_ids_to_tokens(before) == ["\u2581the"]
    assert streamed(BYTE_FALLBACK, after, [], before) == " cat"
    assert streamed(BYTE_FALLBACK, after, []) == "cat"


def test_special_tokens_do_not_show():
    ids = [*BYTE_LEVEL.encode("the cat"), BYTE_LEVEL.convert_tokens_to_ids("<|im_end|>"), *BYTE_LEVEL.encode(" sat")]
    assert streamed(BYTE_LEVEL, ids, []) == "the cat sat"


def shown(stops: list[str], parts: list[str]) -> tuple[str, bool]:
    passing, out = StopStrings(stops), []
    for part in parts:
        text, hit = passing.push(part)
        out.append(text)
        if hit:
            return "".join(out), True
    return "".join([*out, passing.flush()]), False


@settings(max_examples=300)
@given(
    text=st.text("ab", max_size=14),
    stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 5), max_size=6),
)
def test_stop_strings_cut_at_the_first_that_is_complete(text, stops, cuts):
    ends = [end for end in range(len(text) + 1) if any(text[:end].endswith(stop) for stop in stops)]
    expected = min(text[: ends[0] - len(stop)] for stop in stops if text[: ends[0]].endswith(stop)) if ends else text
    parts, at = [], 0
    for cut in [*cuts, len(text)]:
        parts.append(text[at : at + cut])
        at += cut
    assert shown(stops, parts) == (expected, bool(ends))


def test_only_a_possible_stop_is_held_back():
    passing = StopStrings(["</answer>", "\n\n"])
    assert passing.push("1 < 2 and <") == ("1 < 2 and ", False)
    assert passing.push("/a") == ("", False)
    assert passing.push("b\n") == ("</ab", False)
    assert passing.push("x") == ("\nx", False)
    assert passing.push("y</answer> z") == ("y", True)
    with pytest.raises(ValueError, match="at least one character"):
        StopStrings(["ok", ""])


def test_prompts_of_three_kinds():
    assert encode(BYTE_LEVEL, "the cat", 330) == BYTE_LEVEL.encode("the cat")
    assert encode(BYTE_LEVEL, (5, 6), 330) == [5, 6]
    chat = encode(BYTE_LEVEL, [{"role": "user", "content": "hi"}], 330)
    assert BYTE_LEVEL.decode(chat) == "<|im_start|>user\nhi<|im_end|><|im_start|>a\n"


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("", "prompt is empty"),
        ([], "prompt is empty"),
        ([3, 400], "id 400, outside the vocabulary of 330"),
        ([3, -1], "id -1"),
        ([3, True], "entry 1 of the prompt is True"),
        ([3, "x"], "entry 1 of the prompt is 'x'"),
        (7, "got int"),
        (None, "got NoneType"),
        ("half \ud83d", "lone surrogate"),
        ([{"role": "user"}], "chat message 0 must be a dict"),
        ([{"role": "user", "content": "a"}, "b"], "chat message 1 must be a dict"),
        ([{"role": "usr", "content": "a"}], "role 'usr': possible are system"),
    ],
)
def test_bad_prompts(prompt, says):
    with pytest.raises(ValueError, match=says):
        encode(BYTE_LEVEL, prompt, 330)


def test_chat_without_a_usable_template():
    messages = [{"role": "user", "content": "hi"}]
    with pytest.raises(ValueError, match="no chat template"):
        encode(BYTE_FALLBACK, messages, 330)
    strict = byte_level()
    strict.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ValueError, match="refused the messages: roles must alternate"):
        encode(strict, messages, 330)


def test_what_is_a_list_of_prompts():
    assert is_batch(["a", "b"]) and is_batch([[1], "b"]) and is_batch([[{"role": "user", "content": ""}]])
    assert not any(is_batch(prompt) for prompt in ("ab", [1, 2], [{"role": "user", "content": ""}], []))


def test_all_ends_are_found():
    ids = {name: BYTE_LEVEL.convert_tokens_to_ids(name) for name in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")}

    class Model:
        class generation_config:
            eos_token_id = [7, 9]

        class config:
            eos_token_id = 7

    assert stop_ids(None, BYTE_LEVEL) == tuple(sorted({ids["<|endoftext|>"], ids["<|im_end|>"]}))
    assert set(stop_ids(Model, BYTE_LEVEL)) == {7, 9, ids["<|endoftext|>"], ids["<|im_end|>"]}
    assert ids["<|im_start|>"] in stop_ids(Model, BYTE_LEVEL, ["<|im_start|>"])


def test_vocabularies_are_compared_on_what_they_share():
    longer = byte_level()
    longer.add_tokens(["<extra>"])
    assert difference(BYTE_LEVEL, longer) is None and difference(longer, BYTE_LEVEL) is None
    other = byte_level()
    other.add_special_tokens({"additional_special_tokens": [AddedToken("<tool>", special=True)]})
    assert difference(longer, other) is None  # the same id, both added later
    assert difference(BYTE_FALLBACK, BYTE_LEVEL) == "id 3 is '<0x01>' in one and '!' in the other"
