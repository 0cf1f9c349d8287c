"""The loop over sequences. It knows ids and the four seams; text, partial UTF-8 and stop strings are handled one layer up."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from typing import Any

from torch import Tensor

from draftwise.clock import Clock
from draftwise.noise import Noise
from draftwise.protocols import Ask, Backend, Drafter, Encodes, needs_steps
from draftwise.rounds import NOTHING, verify
from draftwise.sequence import Method, Sequence
from draftwise.stats import Costs
from draftwise.trees import levels
from draftwise.types import Chunk, Draft, Now, Sampling, Text

_CATCH_UP = 8  # a drafter that has to read more than this reads a text, and its time is no measure of a draft step


class Engine:
    """Decodes any number of requests over one `target`, each by its own method. `chunk`: most prompt tokens read in one pass, so that a long
    prompt does not stall the others. `slots`: most sequences in one pass (a target may have fewer); the rest wait in order."""

    def __init__(self, target: Backend, chunk: int = 256, slots: int = 16) -> None:
        if chunk < 1 or slots < 1:
            raise ValueError(f"chunk and slots must be at least 1, got {chunk} and {slots}")
        self.target, self.chunk, self.slots = target, chunk, min(slots, getattr(target, "most_slots", slots))
        self.running: list[Sequence] = []
        self.waiting: deque[Sequence] = deque()
        self.last: dict[object, Any] = {}  # policy -> the state of the sequence that finished last under it
        self.costs: dict[int, tuple[object, Costs]] = {}  # by id of the model or drafter, which is kept alive so that its id stays its own
        self._chunks: list[Chunk] = []  # committed, not yet returned: a step that was interrupted loses none
        self._ids = itertools.count()
        self._clock = Clock(getattr(target, "device", None))

    @property
    def busy(self) -> bool:
        """Whether a request is running or waiting."""
        return bool(self.running or self.waiting)

    def add(self, tokens: Seq[int], sampling: Sampling, method: Method, source: Tensor | None = None) -> Sequence:
        """Queues a request and returns its sequence, whose ``text.id`` names it in chunks. A target with an encoder reads `source` with it, and
        `tokens` are what its decoder starts with. Raises ValueError for an empty prompt, one that leaves no room in the model's context, ids
        outside the vocabulary, a source that the target cannot read, and parts that do not fit together."""
        self._check(tokens, method)
        self._check_source(source)
        own = [int(token) for token in tokens]
        slot = -1  # none yet
        foreign = not getattr(self.target, "shared", True)
        text = Text(next(self._ids), slot, own, sampling, Noise(sampling.seed, method.accept.coupled), source, foreign)
        limit = min(len(own) + sampling.max_tokens, self.target.max_length)
        states = method.length.init(self.last.get(method.length)), method.accept.init(self.last.get(method.accept))
        sequence = Sequence(text, own, method, *states, prompt=len(own), limit=limit)
        self.waiting.append(sequence)
        return sequence

    def step(self) -> list[Chunk]:
        """One pass of the target over all running sequences. Returns what each of them emitted (nothing for a sequence whose prompt is still
        being read). If anything raises, caches are emptied and the requests stay: the next step reads their texts again."""
        try:
            self._retire()
            self._admit()
            if self.running:
                self._step()
            self._retire()
        except BaseException:
            for sequence in self.running:
                self._forget(sequence)
            raise
        chunks, self._chunks = self._chunks, []
        return chunks

    def stream(self) -> Iterator[Chunk]:
        """Chunks of all requests until none is left."""
        while self.busy or self._chunks:
            yield from self.step()

    def generate(self, prompts: Seq[Seq[int]], sampling: Sampling, method: Method, sources: Seq[Tensor] | None = None) -> list[list[int]]:
        """The new tokens of each prompt, decoded together; `sources`: one for each, where the target has an encoder."""
        pairs = zip(prompts, sources if sources is not None else [None] * len(prompts), strict=True)
        sequences = [self.add(prompt, sampling, method, source) for prompt, source in pairs]
        for _ in self.stream():
            pass
        return [sequence.tokens[sequence.prompt :] for sequence in sequences]

    def cancel(self, id: int) -> None:
        """Drops a request, running or waiting. An unknown id (or one that has finished) is no error."""
        for sequence in [s for s in self.running if s.text.id == id]:
            self._forget(sequence)
            self.running.remove(sequence)
        self.waiting = deque(s for s in self.waiting if s.text.id != id)

    def _step(self) -> None:
        ready = [s for s in self.running if len(s.tokens) - self.target.length(s.text.slot) <= self.chunk]
        nows = [self._now(s) for s in ready]
        trees = getattr(self.target, "trees", True)
        asks = [s.ask(now, trees) for s, now in zip(ready, nows, strict=True)]
        encodes = any(s.text.source is not None and not self.target.length(s.text.slot) for s in self.running)
        start = self._clock.mark()
        drafts = self._propose(ready, asks)
        middle = self._clock.mark()
        batch = [(s, drafts.get(s.text.id, NOTHING)) for s in self.running]
        outcomes = verify(self.target, [s.judging(draft) for s, draft in batch], self.chunk)
        end = self._clock.mark()
        draft_s, verify_s = self._clock.seconds(start, middle), self._clock.seconds(middle, end)
        rows = sum(outcome.fed for outcome in outcomes)
        if len(ready) == len(self.running) and not encodes:  # the encoder's time is no measure of a verification
            self._costs(self.target).verified(rows, verify_s)
        steps = max((levels(d.parents, len(d.tokens)) for d in drafts.values()), default=0)
        if len({id(s.method.drafter) for s in ready}) == 1 and max(now.lag for now in nows) <= _CATCH_UP:
            self._costs(ready[0].method.drafter).drafted(steps, draft_s)
        lags = {s.text.id: now.lag for s, now in zip(ready, nows, strict=True)}
        for (sequence, draft), outcome in zip(batch, outcomes, strict=True):
            usual_s = self._costs(sequence.method.drafter).drafting(steps) + self._costs(self.target).verifying(rows)
            chunk = sequence.commit(draft, outcome, len(batch), rows, draft_s, verify_s, lags.get(sequence.text.id, 0), usual_s)
            if chunk.tokens:
                self._chunks.append(chunk)
            sequence.method.drafter.observe(sequence.text, draft, outcome)

    def _propose(self, ready: Seq[Sequence], asks: Seq[Ask]) -> dict[int, Draft]:
        """Each drafter is asked once, for all sequences that use it."""
        groups: dict[int, tuple[Drafter, list[Ask]]] = {}
        for sequence, ask in zip(ready, asks, strict=True):
            if ask.n:
                groups.setdefault(id(sequence.method.drafter), (sequence.method.drafter, []))[1].append(ask)
        drafts: dict[int, Draft] = {}
        for drafter, some in groups.values():
            drafts.update(zip((ask.text.id for ask in some), drafter.propose(some), strict=True))
        return drafts

    def _now(self, sequence: Sequence) -> Now:
        drafter, costs = sequence.method.drafter, self._costs(sequence.method.drafter)
        room = sequence.limit - len(sequence.tokens) - 1
        verify_s = self._costs(self.target).verify_s
        return Now(len(self.running), len(sequence.tokens), room, drafter.lag(sequence.text), costs.draft_s, verify_s)

    def _costs(self, part: object) -> Costs:
        return self.costs.setdefault(id(part), (part, Costs()))[1]

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self.slots:
            sequence = self.waiting.popleft()
            taken = {s.text.slot for s in self.running}
            slot = next(i for i in itertools.count() if i not in taken)
            sequence.text = sequence.text._replace(slot=slot)
            self.running.append(sequence)

    def _retire(self) -> None:
        """Hands on the states of the finished sequences and empties their slots."""
        for sequence in [s for s in self.running if s.finish_reason]:
            self.last[sequence.method.length], self.last[sequence.method.accept] = sequence.length_state, sequence.accept_state
            self._forget(sequence)
            self.running.remove(sequence)

    def _forget(self, sequence: Sequence) -> None:
        self.target.free(sequence.text.slot)
        sequence.method.drafter.free(sequence.text)

    def _check(self, tokens: Seq[int], method: Method) -> None:
        length, accept, drafter = method
        if not len(tokens):
            raise ValueError("the prompt is empty: at least one token is needed (a beginning-of-text token will do)")
        if len(tokens) >= self.target.max_length:
            raise ValueError(f"the prompt has {len(tokens)} tokens and the model's context holds {self.target.max_length}: no room for an answer")
        if not all(0 <= int(token) < self.target.vocab_size for token in tokens):
            raise ValueError(f"the prompt has token ids outside the model's vocabulary of {self.target.vocab_size}")
        if accept.wants_logits and not drafter.has_logits:
            raise ValueError(f"{_name(accept)} compares the draft's laws with the target's, and {_name(drafter)} has none: use a draft model")
        if needs_steps(length, drafter):
            raise ValueError(f"{_name(length)} stops on the draft's confidence, and {_name(drafter)} has none: use a draft model or another length")
        if getattr(drafter, "trees", False) and not accept.trees:
            raise ValueError(
                f"{_name(drafter)} proposes trees, and {_name(accept)} judges chains only: "
                "speculative, coupled and typical acceptance know trees, and so does a budget over typical"
            )
        if getattr(drafter, "trees", False) and not getattr(self.target, "trees", True):
            raise ValueError(f"{_name(drafter)} proposes trees, and this target reads chains only: use another drafter")

    def _check_source(self, source: Tensor | None) -> None:
        if isinstance(self.target, Encodes):
            if reason := self.target.refusal(source):
                raise ValueError(reason)
        elif source is not None:
            raise ValueError("an encoder input (source) was given, and the target has no encoder: it reads the prompt alone")


def _name(part: object) -> str:
    return type(part).__name__
