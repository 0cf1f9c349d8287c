"""Two tokenizers, one text: which ids of two vocabularies stand for the same bytes, and how a text in the ids of one reads in those of the other.

A token's **form** is the bytes it stands for in the middle of a text, whatever its tokenizer calls it: byte-level BPE writes a space as one sign
of its alphabet and SentencePiece as a lower bar, and both have single bytes of which only several make a character. Ids are *shared* where
their forms are equal, one to one; special tokens are shared by name, and the ends of text are each other's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

_SPACE, _BYTE = "\u2581", re.compile(r"<0x([0-9A-F]{2})>")
_WHITE = b" \n\t\r"
_SAMPLE = b"""The bus to the harbour leaves at 7:45, and a ticket costs $3. How much do four people pay for the way there and back?
def mean(values: list[float]) -> float:
    \"\"\"The average of some numbers; 0.0 where there are none.\"\"\"
    return sum(values) / len(values) if values else 0.0
"""
_SEGMENT = 32  # tokens after which a segment ends without a space, as texts of some scripts have none


class Vocabulary:
    """A tokenizer of transformers, by what its ids stand for. Everything is worked out when it is first asked for (a second for 150,000 ids)."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    @cached_property
    def names(self) -> dict[int, str]:
        """What the tokenizer calls its ids."""
        return {int(i): str(name) for name, i in self.tokenizer.get_vocab().items()}

    @cached_property
    def specials(self) -> dict[str, int]:
        """Tokens that are no text, by name."""
        added = {i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        return {self.names[i]: i for i in sorted(added | set(self.tokenizer.all_special_ids)) if i in self.names}

    @cached_property
    def forms(self) -> dict[int, bytes]:
        """The bytes of all other tokens."""
        special, added = set(self.specials.values()), self.tokenizer.added_tokens_decoder
        read = self._reader()
        forms = {i: name.encode() if i in added and read is _byte_level else read(i, name) for i, name in self.names.items() if i not in special}
        return {i: form for i, form in forms.items() if form}

    @cached_property
    def ranked(self) -> list[int]:
        """The ids of `forms`, those that are really used first: a tokenizer writes "." as such and not as the byte it also has."""
        return sorted(self.forms, key=lambda i: (_BYTE.fullmatch(self.names[i]) is not None, i))

    @cached_property
    def halves(self) -> frozenset[int]:
        """Ids of single bytes that are no character, kept for characters the vocabulary lacks."""
        return frozenset(i for i, name in self.names.items() if _BYTE.fullmatch(name) and self.forms.get(i, b"\0")[0] >= 128)

    @cached_property
    def opening(self) -> tuple[int, ...]:
        """What the tokenizer puts before every text: a beginning of text, or nothing."""
        whole, bare = (list(self.tokenizer.encode("a", add_special_tokens=add)) for add in (True, False))
        return tuple(whole[: len(whole) - len(bare)]) if whole[len(whole) - len(bare) :] == bare else ()

    @cached_property
    def end(self) -> int | None:
        """The id that ends a text."""
        found = self.tokenizer.eos_token_id
        return found if found is None else int(found)

    def text(self, ids: Iterable[int]) -> bytes:
        """The bytes of `ids`, special tokens as they are called. An id that the tokenizer does not know is nothing."""
        return b"".join(self.forms.get(i) or self.names.get(i, "").encode() for i in ids)

    def encode(self, text: bytes) -> list[int]:
        """The ids of a piece from the middle of a text. Bytes that are no character are left out, as half of one at either end."""
        words = text.decode(errors="ignore")
        ids = self._ids(words)
        if words and self.text(ids) == b" " + words.encode():  # a tokenizer that begins every text with a space
            for sign in ("\n", "."):
                after = _after(self, self._ids(sign + words), sign.encode())
                if after is not None and self.text(after) == words.encode():
                    return after
        return ids

    def _ids(self, words: str) -> list[int]:
        return [int(i) for i in self.tokenizer.encode(words, add_special_tokens=False, verbose=False)] if words else []

    def _reader(self) -> Any:
        decoder = repr(getattr(getattr(self.tokenizer, "backend_tokenizer", None), "decoder", ""))
        if decoder.startswith("ByteLevel") or "ByteLevel(" in decoder:
            return _byte_level
        if _SPACE in decoder or "Metaspace" in decoder:
            return _space_marked
        return self._decoded

    def _decoded(self, i: int, name: str) -> bytes:
        """The form of a token of any other tokenizer: what it adds to the text of a token before it."""
        before = next(other for other in self.names if other not in self.specials.values())
        base, whole = self.tokenizer.decode([before]), self.tokenizer.decode([before, i])
        return str(whole[len(base) :] if whole.startswith(base) else self.tokenizer.decode([i])).encode()


class Pair:
    """The vocabularies of a target and of a draft."""

    def __init__(self, target: Vocabulary, draft: Vocabulary) -> None:
        self.target, self.draft = target, draft

    @cached_property
    def shared(self) -> dict[int, int]:
        """Target id -> draft id, one to one, ascending."""
        if self.same:
            return {i: i for i in sorted(self.target.names)}
        by_form: dict[tuple[bytes, bool], int] = {}
        for i in self.draft.ranked:
            by_form.setdefault((self.draft.forms[i], i in self.draft.halves), i)
        found: dict[int, int] = {}
        for i in self.target.ranked:
            other = by_form.pop((self.target.forms[i], i in self.target.halves), None)  # popped: a form that comes twice is shared once
            if other is not None:
                found[i] = other
        found |= {i: self.draft.specials[name] for name, i in self.target.specials.items() if name in self.draft.specials}
        ends = self.target.end, self.draft.end
        if ends[0] is not None and ends[1] is not None and ends[0] not in found and ends[1] not in found.values():
            found[ends[0]] = ends[1]
        return dict(sorted(found.items()))

    @cached_property
    def cover(self) -> float:
        """How much of a sample text is shared tokens, in the tokenisation that has fewer of them: 0 to 1. Counted in a text, since most ids of a
        large vocabulary are rare."""
        target, draft = self.target.encode(_SAMPLE), self.draft.encode(_SAMPLE)
        theirs = set(self.shared.values())
        return min(sum(i in self.shared for i in target) / max(1, len(target)), sum(i in theirs for i in draft) / max(1, len(draft)))

    @cached_property
    def shares_text(self) -> bool:
        """Whether anything that one writes is text to the other: a shared token, or one that the other's tokenizer writes with its own."""
        if any(i in self.target.forms for i in self.shared):
            return True
        forms = sorted(self.draft.forms.values(), key=len)[:256]
        return any(self.target.text(self.target.encode(form)).strip() == form.strip() for form in forms if form.strip())

    def piece(self, token: int) -> list[int]:
        """One target token in draft ids: its own, or those of its text."""
        own = self.shared.get(token)
        return [own] if own is not None else self.draft.encode(self.target.text([token]))

    @cached_property
    def same(self) -> bool:
        """Whether every id of the target means the same to the draft."""
        return self.target.forms == self.draft.forms and self.target.specials == self.draft.specials

    def segment(self, tokens: Sequence[int]) -> list[int]:
        """A stretch of target tokens in draft ids: what the draft's tokenizer makes of its text, since that is what the draft has learnt from."""
        if self.same:
            return list(tokens)
        return self.piece(tokens[0]) if len(tokens) == 1 else self.draft.encode(self.target.text(tokens))

    def parts(self, before: int, token: int) -> bool:
        """Whether a segment may begin with `token`: where white space follows what is none, and around special tokens."""
        forms = self.target.forms
        if token not in forms or before not in forms:
            return True
        return forms[token][0] in _WHITE and forms[before][-1] not in _WHITE


class Reading:
    """A growing text of target tokens in draft ids. Only the last segment is read again, since only its reading can change."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.tokens: list[int] = []
        self.ids: list[int] = []
        self.marks: list[tuple[int, int]] = []  # where each segment begins: (index in tokens, index in ids)

    def read(self, tokens: Sequence[int]) -> list[int]:
        """The draft ids of `tokens`, a list to be read only."""
        tokens = list(tokens)
        same = common(self.tokens, tokens)
        if same == len(tokens) == len(self.tokens):
            return self.ids
        while self.marks and self.marks[-1][0] >= same:
            self.marks.pop()
        start, done = self.marks.pop() if self.marks else (0, 0)
        del self.ids[done:]
        self.tokens = tokens
        while start < len(tokens):
            self.marks.append((start, len(self.ids)))
            end = self._end(start)
            self.ids += self.pair.segment(tokens[start:end])
            start = end
        return self.ids

    def _end(self, start: int) -> int:
        tokens, forms = self.tokens, self.pair.target.forms
        for i in range(start + 1, len(tokens)):
            long = i - start >= _SEGMENT and forms.get(tokens[i], b"a")[0] & 0xC0 != 0x80  # not within a character
            if long or self.pair.parts(tokens[i - 1], tokens[i]):
                return i
        return len(tokens)


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many entries two lists begin with in common."""
    n = min(len(one), len(other))
    return n if one[:n] == other[:n] else next(i for i in range(n) if one[i] != other[i])


def window(ids: Sequence[int], most: int) -> int:
    """Where to begin in a text that is longer than `most`, the context of the model that reads it: moved on by half of it at a time, so that what
    the model has read serves it for a while."""
    half = max(1, most // 2)
    return half * max(0, -((most - len(ids)) // half))


def whole(text: bytes) -> int:
    """The length of `text` without the character that is unfinished at its end."""
    for back in range(1, min(4, len(text)) + 1):
        lead = text[-back]
        if lead & 0xC0 != 0x80:
            size = 1 if lead < 0x80 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
            return len(text) - back if size > back else len(text)
    return len(text)


def _after(vocabulary: Vocabulary, ids: list[int], sign: bytes) -> list[int] | None:
    """The ids after those that write `sign`, with or without a space before it."""
    for n in (1, 2):
        if vocabulary.text(ids[:n]) in (sign, b" " + sign):
            return ids[n:]
    return None


def _alphabet() -> dict[str, int]:
    """The signs that byte-level tokenizers write bytes as (GPT-2): printable ones stand for themselves, the others follow from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_SIGNS = _alphabet()


def _byte_level(i: int, name: str) -> bytes:
    return bytes(_SIGNS[c] for c in name) if all(c in _SIGNS for c in name) else name.encode()


def _space_marked(i: int, name: str) -> bytes:
    byte = _BYTE.fullmatch(name)
    return bytes([int(byte[1], 16)]) if byte else name.replace(_SPACE, " ").encode()
