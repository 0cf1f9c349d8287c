"""One request between ids and text: the engine's chunks in, pieces of text and a result out."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from draftwise.sequence import Sequence as Decoding
from draftwise.stats import Summary, summarize
from draftwise.text import Detokenizer, StopStrings
from draftwise.types import Chunk, Origin, Round

Finish = Literal["stop", "length"] | None


class Result(NamedTuple):
    """`tokens` are all that were decoded, with the id that ended the text; `origins` and (if asked for) `logprobs` one for each. `text` is
    without special tokens and ends before a stop string. `prompt_tokens`: ids of the prompt; for an encoder-decoder target those that its
    encoder read (features are none), while what its decoder started from is counted nowhere and is no part of `tokens`. `finish_reason`: 'stop',
    'length', or None for what was broken off. `account`: what an acceptance rule that keeps one has spent and has left
    (`draftwise.methods.budget`); None for the others."""

    text: str
    tokens: tuple[int, ...]
    origins: tuple[Origin, ...]
    finish_reason: Finish
    stats: Summary
    prompt_tokens: int
    logprobs: tuple[float, ...] | None
    account: dict[str, float] | None = None


class Piece(NamedTuple):
    """What a round added to prompt number `index`. `text` may lag behind `tokens` where a character or a stop string is unfinished; `parts`
    is that text cut by who wrote it. The last piece of a prompt carries its `result`."""

    index: int  # type: ignore[assignment]  # tuple.index is not wanted here
    text: str
    tokens: tuple[int, ...]
    origins: tuple[Origin, ...]
    finish_reason: Finish
    result: Result | None
    parts: tuple[tuple[str, Origin], ...] = ()


@dataclass(eq=False, slots=True)
class Request:
    """One prompt on its way: the engine's sequence on one side, text on the other. `waiting`: the text of tokens that is not shown yet."""

    index: int
    decoding: Decoding
    detokenizer: Detokenizer
    stops: StopStrings
    chunks: deque[Chunk] = field(default_factory=deque)
    tokens: list[int] = field(default_factory=list)
    origins: list[Origin] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)
    waiting: deque[tuple[str, Origin]] = field(default_factory=deque)
    seconds: float = 0.0
    finish_reason: Finish = None

    def read(self) -> Piece:
        """Takes the next chunk; the tokens after a stop string are dropped."""
        chunk = self.chunks.popleft()
        taken, shown, hit = 0, "", False
        while taken < len(chunk.tokens) and not hit:
            new, hit = self._show(self.detokenizer.push([chunk.tokens[taken]]), chunk.origins[taken])
            taken, shown = taken + 1, shown + new
        if chunk.finish_reason and not hit:
            new, hit = self._show(self.detokenizer.flush(), chunk.origins[-1])
            shown += new if hit else new + self.stops.flush()
        self.finish_reason = "stop" if hit else chunk.finish_reason
        self.tokens += chunk.tokens[:taken]
        self.origins += chunk.origins[:taken]
        self.logprobs += chunk.logprobs[:taken]
        self.shown.append(shown)
        parts = self._parts(len(shown))
        result = self.result() if self.finish_reason else None
        return Piece(self.index, shown, chunk.tokens[:taken], chunk.origins[:taken], self.finish_reason, result, parts)

    def result(self) -> Result:
        """What was read so far. Rounds are counted as far as their tokens were kept."""
        sampling, source = self.decoding.text.sampling, self.decoding.text.source
        prompt = self.decoding.prompt if source is None else 0 if source.is_floating_point() else len(source)
        stats = summarize(_kept(self.decoding.rounds, self.origins), self.seconds)
        logprobs = tuple(self.logprobs) if sampling.logprobs else None
        report = getattr(self.decoding.method.accept, "report", None)
        account = report(self.decoding.accept_state) if report else None
        return Result("".join(self.shown), tuple(self.tokens), tuple(self.origins), self.finish_reason, stats, prompt, logprobs, account)

    def _show(self, new: str, origin: Origin) -> tuple[str, bool]:
        self.waiting.append((new, origin))
        return self.stops.push(new)

    def _parts(self, length: int) -> tuple[tuple[str, Origin], ...]:
        """Takes `length` characters of the waiting text."""
        parts: list[tuple[str, Origin]] = []
        while length > 0:
            part, origin = self.waiting.popleft()
            if len(part) > length:
                self.waiting.appendleft((part[length:], origin))
            parts.append((part[:length], origin))
            length -= len(part)
        return tuple(part for part in parts if part[0])


def _kept(rounds: Sequence[Round], origins: Sequence[Origin]) -> list[Round]:
    """The rounds as far as their tokens, of which there are len(origins), were kept; the one a stop string cut is counted up to it."""
    kept: list[Round] = []
    done = 0
    for record in rounds:
        if done == len(origins) and record.emitted:
            break
        mine = origins[done : done + record.emitted]
        if len(mine) < record.emitted:
            accepted = sum(origin != "target" for origin in mine)
            record = record._replace(emitted=len(mine), accepted=accepted, relaxed=mine.count("relaxed"), finished=True)
        kept.append(record)
        done += len(mine)
    return kept
