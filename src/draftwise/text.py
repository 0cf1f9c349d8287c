"""Between text and ids: prompts in, streams of text out. Nothing here knows of drafts.

The text of a list of ids is not the join of the texts of its ids: a character may span tokens, and some decoders drop the first space.
`Detokenizer` decodes a short window that starts at a token already shown, and shows only what later tokens cannot change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any

Message = Mapping[str, Any]
Prompt = str | Sequence[int] | Sequence[Message]
"""A text to continue, token ids, or chat messages ``{"role": ..., "content": ...}``."""

ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
_ENDS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|return|>", "<eos>", "</s>")
_UNKNOWN = "\ufffd"  # what decoders write for bytes that are no character (yet)
_CHARACTER = 4  # tokens a character spans at most, each of one byte
_WINDOW = 32  # tokens after which a window of broken bytes is shown as it is


class Detokenizer:
    """Text of a growing list of ids, special tokens left out. `context`: ids before the first one, which decide about its leading space."""

    def __init__(self, tokenizer: Any, context: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._window = [int(token) for token in context[-_CHARACTER:]]
        self._shown = 0  # characters of the window's text that are out
        self._move(must=True)

    def push(self, ids: Iterable[int]) -> str:
        """The text that `ids` complete; an unfinished character waits for its rest. The same however the ids are cut into calls."""
        return "".join(self._one(int(token)) for token in ids)

    def flush(self) -> str:
        """What was held back, as it stands."""
        text = self._decode()[self._shown :]
        self._shown += len(text)
        return text

    def _one(self, token: int) -> str:
        self._window.append(token)
        text = self._decode()
        whole = len(self._window) > _WINDOW
        end = len(text) if whole else len(text.rstrip(_UNKNOWN))
        new = text[self._shown : end]
        self._shown = max(self._shown, end)
        if end == len(text) and (new or whole):
            self._move(must=whole)
        return new

    def _move(self, must: bool) -> None:
        """Starts the window at its last tokens that show as whole characters: they stand for all before them."""
        for n in range(1, min(_CHARACTER, len(self._window)) + 1):
            text = self._decode(n)
            if text and _UNKNOWN not in text:
                self._window, self._shown = self._window[-n:], len(text)
                return
        if must:
            self._window, self._shown = [], 0

    def _decode(self, last: int = 0) -> str:
        """The text of the window, or of its `last` tokens."""
        if not self._window:
            return ""
        return str(self._tokenizer.decode(self._window[-last:], skip_special_tokens=True, clean_up_tokenization_spaces=False))


class StopStrings:
    """Passes text on up to the first stop string, which is left out with all that follows. Of two that overlap, the one complete first
    counts, so that the cut does not depend on how the text arrives. Raises ValueError for an empty stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        if not all(isinstance(stop, str) and stop for stop in stops):
            raise ValueError(f"a stop string must be a text of at least one character, got {list(stops)!r}")
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """(what may be shown now, whether a stop string was met). The longest end that may yet become a stop string is held back."""
        text = self._held + text
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)[1]], True
        keep = max((n for stop in self._stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def flush(self) -> str:
        """What was held back: no more text comes."""
        held, self._held = self._held, ""
        return held


def pieces(tokenizer: Any, ids: Sequence[int], context: Sequence[int] = ()) -> list[str]:
    """One piece of text per token; joined they are the whole text. A character that spans tokens belongs to the last of them."""
    detokenizer = Detokenizer(tokenizer, context)
    parts = [detokenizer.push([token]) for token in ids]
    if parts:
        parts[-1] += detokenizer.flush()
    return parts


def is_batch(prompt: Any) -> bool:
    """Whether this is a list of prompts: its entries are neither ids nor messages."""
    return isinstance(prompt, (list, tuple)) and bool(prompt) and not isinstance(prompt[0], (Integral, Mapping)) and hasattr(prompt[0], "__len__")


def is_chat(prompt: Any) -> bool:
    """Whether this is a list of chat messages: its answer begins a text of its own, where other prompts are continued."""
    return isinstance(prompt, (list, tuple)) and bool(prompt) and isinstance(prompt[0], Mapping)


def encode(tokenizer: Any, prompt: Any, vocab_size: int) -> list[int]:
    """The ids of a text, of chat messages (with the template's opening of the answer), or of ids. Raises ValueError with what is wrong."""
    if isinstance(prompt, str):
        return _ids_of_text(tokenizer, prompt)
    values = prompt.tolist() if hasattr(prompt, "tolist") else prompt
    if not isinstance(values, (list, tuple, range)):
        raise ValueError(f"a prompt is a text, a list of token ids, or a list of chat messages, got {type(prompt).__name__}")
    if not values:
        raise ValueError("the prompt is empty: give a text, token ids, or chat messages")
    if any(isinstance(value, Mapping) for value in values):
        return _ids_of_chat(tokenizer, values)
    return _checked(values, vocab_size)


def stop_ids(model: Any, tokenizer: Any, stops: Sequence[str] = ()) -> tuple[int, ...]:
    """Every id that ends an answer: those the model or its configurations name, the tokenizer's own, the usual ends of a turn that it has as special
    tokens, and those of `stops` that are special tokens (they never show in the text). A model without configuration has none."""
    configs = [getattr(model, "generation_config", None), getattr(model, "config", None), model, tokenizer]
    found: set[int] = set()
    for config in configs:
        ids = getattr(config, "eos_token_id", None)
        found.update(int(i) for i in (ids if isinstance(ids, (list, tuple)) else [ids]) if i is not None)
    special = {str(token): i for i, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if token.special}
    found.update(special[end] for end in (*_ENDS, *stops) if end in special)
    return tuple(sorted(found))


def difference(target: Any, draft: Any) -> str | None:
    """What sets two tokenizers apart, or None. Special and added tokens may differ, and one vocabulary may go on where the other ends:
    members of a family do so, and it costs a refused draft token now and then."""
    if draft is None or draft is target:
        return None
    theirs = {i: token for token, i in draft.get_vocab().items()}
    added = target.added_tokens_decoder.keys() | draft.added_tokens_decoder.keys()
    shared = [(i, token) for token, i in target.get_vocab().items() if i in theirs and i not in added]
    if not shared:
        return "they share no id"
    return next((f"id {i} is {token!r} in one and {theirs[i]!r} in the other" for i, token in sorted(shared) if theirs[i] != token), None)


def _ids_of_text(tokenizer: Any, text: str) -> list[int]:
    if not text:
        raise ValueError("the prompt is empty: give at least one character")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the prompt holds half of a character (a lone surrogate) at position {error.start}: it is no valid text") from None
    ids = [int(i) for i in tokenizer.encode(text)]
    if not ids:
        raise ValueError(f"the prompt {text!r} is empty for this tokenizer: it has no tokens")
    return ids


def _ids_of_chat(tokenizer: Any, messages: Sequence[Any]) -> list[int]:
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise ValueError(f"chat message {i} must be a dict with 'role' and 'content', got {message!r}")
        if message["role"] not in ROLES:
            raise ValueError(f"chat message {i} has the role {message['role']!r}: possible are {', '.join(ROLES)}")
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError("this model's tokenizer has no chat template: give a text or ids (a base model continues text, it does not chat)")
    try:
        text = tokenizer.apply_chat_template([dict(message) for message in messages], tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template is a program of its own and raises what it likes
        raise ValueError(f"the model's chat template refused the messages: {error}") from error
    return [int(i) for i in tokenizer.encode(text, add_special_tokens=False)]


def _checked(values: Sequence[Any], vocab_size: int) -> list[int]:
    for i, value in enumerate(values):
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise ValueError(f"entry {i} of the prompt is {value!r}: a list is either all token ids, all chat messages, or all prompts")
        if not 0 <= int(value) < vocab_size:
            raise ValueError(f"entry {i} of the prompt is the id {value}, outside the vocabulary of {vocab_size}")
    return [int(value) for value in values]
