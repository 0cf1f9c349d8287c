"""What a prompt becomes for the engine. For a decoder its ids are the beginning of the text. For a target with an encoder they are what the encoder
reads, and the decoder starts from ids of its own: those that the model's configuration names, or the request's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from draftwise import text
from draftwise.protocols import Backend, Encodes

_IDS = "input_ids"


class Inputs(NamedTuple):
    """`tokens`: what the decoder starts with. `source`: what an encoder reads. `context`: ids before the answer that its text goes on from."""

    tokens: list[int]
    source: Tensor | None = None
    context: Sequence[int] = ()


def inputs(model: Any, tokenizer: Any, backend: Backend, prompt: Any, start: Sequence[int | str] | None = None) -> Inputs:
    """Of a text, of chat messages, of ids, or for an encoder that reads features of one input without batch dimension. `start`: ids or names of
    tokens that the decoder starts with instead of its usual ones. Raises ValueError with what is wrong."""
    if not isinstance(backend, Encodes):
        if start is not None:
            raise ValueError("decoder_start is for encoder-decoder targets: this target reads the prompt and goes on from it")
        ids = text.encode(tokenizer, prompt, backend.vocab_size)
        return Inputs(ids, None, () if text.is_chat(prompt) else ids)
    if backend.reads != _IDS:
        source = _features(backend.reads, prompt)
    elif text.is_chat(prompt) and not getattr(tokenizer, "chat_template", None):
        raise ValueError("this encoder-decoder model's tokenizer has no chat template: give a text (or ids), which its encoder reads whole")
    else:
        source = torch.tensor(text.encode(tokenizer, prompt, getattr(backend, "source_vocab", backend.vocab_size)))
    return Inputs(starts(model) if start is None else _named(tokenizer, start, backend.vocab_size), source)


def starts(model: Any) -> list[int]:
    """The ids that decoding starts from: the decoder's start token, and the token that the configuration forces after it (a language code). Nothing
    else that a generation configuration may force or forbid is in force. Raises ValueError where it names no start."""
    found = {}
    for config in (getattr(model, "config", None), getattr(model, "generation_config", None)):  # the later one counts, as in transformers
        for name in ("bos_token_id", "decoder_start_token_id", "forced_bos_token_id"):
            if isinstance(own := getattr(config, name, None), int):
                found[name] = own
    first = found.get("decoder_start_token_id", found.get("bos_token_id"))
    if first is None:
        raise ValueError("the model's configuration names no decoder_start_token_id: give the ids that its decoder starts with as decoder_start")
    return [first, *([found["forced_bos_token_id"]] if "forced_bos_token_id" in found else [])]


def difference(target: Backend, draft: Backend, tokenizers: tuple[Any, Any]) -> str:
    """Why a draft cannot read what its target reads, the target's tokenizer first; '' if it can. A source is ids: no draft reads those of another
    vocabulary with an encoder."""
    theirs = getattr(target, "reads", None)
    if not isinstance(draft, Encodes):
        return ""
    if draft.reads == theirs:
        apart = text.difference(*tokenizers)
        return f"its encoder would read the ids of the target's prompt, and their vocabularies differ ({apart})" if apart else ""
    return f"it is an encoder-decoder model that reads {draft.reads}, and the target " + (f"reads {theirs}" if theirs else "has no encoder")


def _features(reads: str, prompt: Any) -> Tensor:
    values = torch.as_tensor(prompt) if hasattr(prompt, "dtype") else None
    if values is None or not values.is_floating_point():
        raise ValueError(f"this model's encoder reads {reads}, not text: give what its processor makes of one input, without the batch dimension")
    return values


def _named(tokenizer: Any, start: Sequence[int | str], vocab_size: int) -> list[int]:
    """Ids of tokens given by id or name."""
    if isinstance(start, str) or not start:
        raise ValueError(f"decoder_start is a list of token ids or names of tokens, at least one, got {start!r}")
    vocab = tokenizer.get_vocab()
    if unknown := [token for token in start if isinstance(token, str) and token not in vocab]:
        raise ValueError(f"decoder_start names {unknown[0]!r}, which is no token of this model")
    return text.encode(tokenizer, [vocab[token] if isinstance(token, str) else token for token in start], vocab_size)
