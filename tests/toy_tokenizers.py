"""Tiny tokenizers of three families over the same few letters, and tables that write with them."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from draftwise.backends.table import Table
from draftwise.context import Context
from draftwise.methods.tli import Translated
from draftwise.vocabularies import Pair, Vocabulary


def byte_level(merges: Sequence[str] = (), letters: str | None = None, end: str | None = "<end>", shift: int = 0) -> PreTrainedTokenizerFast:
    """Byte-level BPE (GPT-2, Qwen): all 256 bytes or only `letters`, then `merges` like "Ġ t", then `end`."""
    signs = list(letters) if letters else sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [tuple(merge.split(" ")) for merge in merges]
    names = [*signs[shift:], *signs[:shift], *dict.fromkeys("".join(pair) for pair in pairs)]
    inner = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, pairs))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, **({"eos_token": end} if end else {}))


def unigram(pieces: Sequence[str], begins_with_space: bool = False) -> PreTrainedTokenizerFast:
    """SentencePiece's Unigram (Gemma, Llama): all single bytes, then `pieces` with a lower bar for a space, ``<s>`` and ``</s>``."""
    vocab = [("<unk>", 0.0), *((f"<0x{b:02X}>", -20.0) for b in range(256)), *((piece, -float(10 - len(piece))) for piece in pieces)]
    inner = Tokenizer(models.Unigram(vocab, 0, byte_fallback=True))
    inner.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    if begins_with_space:
        inner.pre_tokenizer, inner.decoder = pre_tokenizers.Metaspace(prepend_scheme="always"), decoders.Metaspace()
    else:
        inner.normalizer = normalizers.Replace(" ", "\u2581")
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def words(names: Sequence[str]) -> PreTrainedTokenizerFast:
    """WordLevel: one id a word, spaces between them."""
    inner = Tokenizer(models.WordLevel({name: i for i, name in enumerate([*names, "[UNK]"])}, "[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]")


def letters(alphabet: str, merges: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A few letters and what they merge into, and nothing else: for tables small enough to be enumerated."""
    return byte_level(merges, alphabet, end=None)


def crossed(target: PreTrainedTokenizerFast, draft: PreTrainedTokenizerFast, drafter: str = "tli", **options: float) -> Context:
    """A pair of tables as wide as their tokenizers; the draft agrees with the target where their first ids are the same."""
    own, pair = Table(len(target), **options), Pair(Vocabulary(target), Vocabulary(draft))
    return Context(own, Translated(Table(len(draft), **options), pair, len(target), drafter), len(target))
