"""A cheaper draft: its head cut to the tokens that matter.

The head is a large part of a small model: 136 of the 494 million weights of Qwen2.5 0.5B. A draft that cannot propose rare tokens gives each of them
the chance 0, which is its true law, so that nothing changes for the acceptance rule: a text with a rare token is accepted up to it, and the target
writes it. Which tokens matter is read from the user's own texts, or from the tokenizer: byte-pair vocabularies are numbered in the order of their
merges, so that the first ids are the most frequent strings of the text that they were made from. Unless told otherwise a draft whose pass can leave
outputs out (`draftwise.backends.hf_decoder`) has the first 32,768 ids of a large vocabulary and what its text has already. The draft of Qwen2.5
then agrees with 78.8 % of the tokens of 28 answers instead of 79.7 %, and without the text's own tokens with 75.6 % (``benchmarks/agreement.py``).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

TEXT, ALL = "text", "all"
"""Vocabularies of a draft besides numbers and files: what is frequent and what its text has; everything."""

_FIRST = 4096  # ids that are kept besides those of the user's texts
_FREQUENT = 32768  # that are kept besides those of a text; vocabularies less than twice as large are left whole


class Narrow(NamedTuple):
    """`ids` int64 [n], ascending, of a vocabulary of `size`."""

    ids: Tensor
    size: int

    def widen(self, logits: Tensor) -> Tensor:
        """Rows [T, n] over the ids as rows [T, size], -inf elsewhere."""
        out = logits.new_full((len(logits), self.size), -torch.inf)
        return out.index_copy_(1, self.ids.to(out.device), logits)


def chosen(vocabulary: int | str | os.PathLike[str], tokenizer: Any, size: int) -> Tensor:
    """Ids int64, ascending: the first so many, or those of a file's text with the first 4,096; and in both cases special tokens. In a .jsonl file all
    strings are text. Raises ValueError for a number out of range and a file that cannot be read."""
    text = str(vocabulary)
    if text.lstrip("-").isdigit():
        if not 1 <= int(text) <= size:
            raise ValueError(f"a draft vocabulary takes between 1 and all {size} tokens, got {text}")
        found = set(range(int(text)))
    else:
        path = Path(text).expanduser()
        found = set(range(min(_FIRST, size))) | {int(i) for part in _texts(path) for i in tokenizer.encode(part)}
    special = {*getattr(tokenizer, "all_special_ids", ()), *getattr(tokenizer, "added_tokens_decoder", {})}
    return torch.tensor(sorted(i for i in found | special if 0 <= i < size))


def shorten(model: Any, tokenizer: Any) -> None:
    """Lets a draft whose pass can do so compute what is frequent and what its text has alone; others are left as they are."""
    from draftwise.backends.hf_decoder import Decoder
    from draftwise.backends.hf_shortlist import Shortlist

    decoder = getattr(model, "lean", None)
    size = model.get_input_embeddings().num_embeddings
    if isinstance(decoder, Decoder) and size >= 2 * _FREQUENT:
        decoder.shortlist = Shortlist(chosen(_FREQUENT, tokenizer, size))


def named(vocabulary: int | str | os.PathLike[str]) -> str:
    """A name for what is kept of models that were cut so: the number, or one that the file's content gives. Raises ValueError for a file that cannot
    be read."""
    text = str(vocabulary)
    return text if text.lstrip("-").isdigit() else hashlib.sha256("\n".join(_texts(Path(text).expanduser())).encode()).hexdigest()[:16]


def narrow(model: Any, ids: Tensor) -> None:
    """Cuts the head of a causal language model that is ours to change to `ids`. Raises ValueError for a model with an encoder or without a linear
    head."""
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or getattr(model.config, "is_encoder_decoder", False):
        raise ValueError(f"{type(model).__name__} is no decoder with a linear head, which could be cut to a smaller vocabulary")
    with torch.no_grad():
        cut = nn.Linear(head.in_features, len(ids), bias=head.bias is not None, device="meta")
        cut.weight = nn.Parameter(head.weight[ids.to(head.weight.device)].clone(), requires_grad=False)
        if head.bias is not None:
            cut.bias = nn.Parameter(head.bias[ids.to(head.weight.device)].clone(), requires_grad=False)
    model.set_output_embeddings(cut)
    model.narrow = Narrow(ids, head.out_features)


def _texts(path: Path) -> Iterator[str]:
    try:
        whole = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise ValueError(f"a draft vocabulary is a number of tokens or a file of text, and '{path}' cannot be read: {reason}") from None
    if path.suffix != ".jsonl":
        yield whole
        return
    for number, line in enumerate(whole.splitlines(), 1):
        if line.strip():
            try:
                yield from _strings(json.loads(line))
            except json.JSONDecodeError:
                raise ValueError(f"line {number} of '{path}' is no JSON") from None


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for below in value.values() if isinstance(value, dict) else value:
            yield from _strings(below)
