"""Recording: a method that notes what its policies look at, and what of it becomes a trace.

    tape = Tape()
    sequence = engine.add(ids, sampling, record(method, tape));  decode;  save(path, tape, sequence, {"target": ..., ...})

The decisions are those of the method as it was: both policies are asked first and in the same order, and what is noted draws nothing from the
sequence's random streams. Seconds spent on notes are taken off the round's `verify_s`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, cast

import numpy as np
import torch

from draftwise.bench import trace
from draftwise.bench.noted import Open, noted, propose
from draftwise.bench.trace import FLAT, ROUNDS, TOKENS, TOP, TOPS, Trace
from draftwise.methods.draft_model import DraftModel
from draftwise.protocols import Accept, Length, Relax, always
from draftwise.sequence import Method
from draftwise.sequence import Sequence as Decoding
from draftwise.types import Draft, DraftStep, Now, Round, Target, Uniforms, Verdict


class _Judgement(NamedTuple):
    """`tokens`: one entry of each column of TOKENS and TOPS per drafted token. `bonus`: the target's own choice after the whole draft. `open`:
    its row there, kept where the draft was accepted whole."""

    tokens: list[dict[str, Any]]
    bonus: int
    seconds: float
    open: Open | None


@dataclass(eq=False)
class Tape:
    """The notes of one request, by the length of the text at the start of a round: a round that failed is noted anew."""

    method: Method | None = None
    context: int = -1
    moments: dict[int, tuple[Now, int]] = field(default_factory=dict)  # with how many tokens were asked for
    judgements: dict[int, _Judgement] = field(default_factory=dict)
    beyond: dict[int, list[dict[str, Any]]] = field(default_factory=dict)  # what `finish` asked the drafter for
    fresh: bool = True
    budgeted: bool = False
    origin: str = "none"
    vocab: int = 0

    @property
    def seconds(self) -> float:
        """Spent on notes so far: what to take off a measured wall time."""
        return sum(judgement.seconds for judgement in self.judgements.values())


def record(method: Method, tape: Tape) -> Method:
    """`method`, noting on `tape` what it looks at. One tape for one request; raises ValueError for a tape that has been used, and for a
    drafter of trees."""
    if proposes_trees(method):
        raise ValueError(f"a trace holds chains, and {type(method.drafter).__name__} proposes trees: such an answer cannot be replayed")
    if tape.method is not None:
        raise ValueError("a tape records one request: take a new one for each")
    tape.method = method
    wants = method.accept.wants_logits or bool(method.drafter.has_logits)
    return Method(cast(Length, _Length(method.length, tape)), cast(Accept, _Accept(method.accept, tape, wants)), method.drafter)


def proposes_trees(method: Method) -> bool:
    """Whether its drafts may be trees, of which no trace is taken."""
    return bool(getattr(method.drafter, "trees", False))


def save(path: str | os.PathLike[str], tape: Tape, sequence: Decoding, about: Mapping[str, Any]) -> None:
    """Writes the trace of a decoded request. The drafter is asked what it would have proposed after each fully accepted draft. `about`: of
    models, machine and whatever else is JSON; put no path into it that should not travel."""
    trace.save(path, finish(tape, sequence, about))


def finish(tape: Tape, sequence: Decoding, about: Mapping[str, Any] | None = None) -> Trace:
    """The trace that `save` writes."""
    beyond = _beyond(tape, sequence)
    rounds: list[dict[str, Any]] = []
    tokens: list[dict[str, Any]] = []
    pairs: list[tuple[int, float]] = []
    context = sequence.prompt
    for round in sequence.rounds:
        if round.emitted and context not in tape.judgements:
            raise ValueError("this tape did not record that request")
        more = beyond.get(context, []) if round.emitted else []
        rounds.append(_round(round, tape.moments.get(context), tape.judgements.get(context) if round.emitted else None, len(more)))
        tokens += [*tape.judgements[context].tokens, *more] if round.emitted else []
        now = tape.moments[context][0] if round.emitted else None
        pairs += now.verify_s if now else ()
        context += round.emitted
    columns = {name: np.array([row[name] for row in rounds], kind) for name, kind in ROUNDS.items()}
    columns |= {name: np.array([row[name] for row in tokens], kind) for name, kind in TOKENS.items()}
    columns |= {name: np.array([row[name] for row in tokens], kind).reshape(-1, TOP) for name, kind in TOPS.items()}
    flat = (sequence.tokens[sequence.prompt :], [rows for rows, _ in pairs], [seconds for _, seconds in pairs])
    columns |= {name: np.array(values, kind) for (name, kind), values in zip(FLAT.items(), flat, strict=True)}
    return Trace(_header(tape, sequence, about or {}), columns)


@dataclass(frozen=True)
class _Length:
    """A length policy that notes the moments it is asked in."""

    policy: Length
    tape: Tape = field(compare=False, repr=False)

    @property
    def per_token(self) -> bool:
        return self.policy.per_token

    @property
    def rowless(self) -> bool:
        return getattr(self.policy, "rowless", False)

    @property
    def rests(self) -> bool:
        return getattr(self.policy, "rests", False)

    def init(self, last: Any | None) -> Any:
        state = self.policy.init(last)
        self.tape.fresh &= state == self.policy.init(None)
        return state

    def budget(self, state: Any, now: Now) -> int:
        n = self.policy.budget(state, now)
        self.tape.context = now.context
        self.tape.moments[now.context] = now, max(0, min(n, now.room))
        return n

    def more(self, state: Any, now: Now, steps: Sequence[DraftStep]) -> bool:
        return self.policy.more(state, now, steps)

    def update(self, state: Any, round: Round) -> Any:
        return self.policy.update(state, round)


@dataclass(frozen=True)
class _Accept:
    """An acceptance rule that notes what it judges, after it has judged."""

    rule: Accept
    tape: Tape = field(compare=False, repr=False)
    wants_logits: bool = False

    @property
    def lossless(self) -> bool:
        return self.rule.lossless

    @property
    def trees(self) -> bool:
        return False  # a trace holds chains

    @property
    def coupled(self) -> bool:
        return self.rule.coupled

    def init(self, last: Any | None) -> Any:
        state = self.rule.init(last)
        self.tape.fresh &= state == self.rule.init(None)
        return state

    def judge(self, target: Target, draft: Draft, u: Uniforms, state: Any, relax: Relax = always) -> tuple[Verdict, Any]:
        if draft.parents is not None:
            raise ValueError("a trace holds chains, and this drafter proposes trees without saying so")
        verdict, after = self.rule.judge(target, draft, u, state, relax)
        if target.p.is_cuda:
            torch.cuda.synchronize(target.p.device)  # else the notes would pay for what the round has queued
        start = time.perf_counter()
        tokens, choices = noted(target, draft, u)
        n = len(draft.tokens)
        whole = n > 0 and len(verdict.path) == n
        race = u.race[n : n + 1].clone() if whole and u.race is not None else None
        row = Open(target.logits[n : n + 1].clone(), race) if whole else None
        tape = self.tape
        tape.judgements[tape.context] = _Judgement(tokens, choices[n], time.perf_counter() - start, row)
        tape.budgeted |= relax is not always
        if n:
            tape.origin = draft.origin if tape.origin in ("none", draft.origin) else "several drafters"
        tape.vocab = target.logits.shape[-1]
        return verdict, after


def _beyond(tape: Tape, sequence: Decoding) -> dict[int, list[dict[str, Any]]]:
    """By the context of a fully accepted round: the token that the drafter would have proposed next. The kept rows are dropped then: an engine
    may hold on to a tape, since it is part of a policy."""
    drafter = tape.method.drafter if tape.method else None
    kept = {context: (context + len(j.tokens), j.open) for context, j in tape.judgements.items() if j.open is not None}
    if kept and isinstance(drafter, DraftModel):
        found = propose(drafter, sequence, dict(kept.values()))
        tape.beyond |= {context: found[end] for context, (end, _) in kept.items() if end in found}
    tape.judgements = {context: judgement._replace(open=None) for context, judgement in tape.judgements.items()}
    return tape.beyond


def _round(round: Round, moment: tuple[Now, int] | None, judgement: _Judgement | None, beyond: int) -> dict[str, Any]:
    now, asked = moment if moment and judgement else (Now(round.batch, 0, 0, 0), 0)
    spent = judgement.seconds if judgement else 0.0
    found = round._asdict() | {"verify_s": max(round.verify_s - spent, 0.0), "record_s": spent, "beyond": beyond, "asked": asked, "lag": now.lag}
    return found | {"bonus": judgement.bonus if judgement else -1, "now_draft_s": now.draft_s, "now_costs": len(now.verify_s)}


def _header(tape: Tape, sequence: Decoding, about: Mapping[str, Any]) -> dict[str, Any]:
    method = tape.method
    if method is None:
        raise ValueError("this tape recorded nothing")
    sampling = sequence.text.sampling
    plain = {f.name: getattr(sampling, f.name) for f in fields(sampling)}
    return {
        "prompt": sequence.prompt,
        "limit": sequence.limit,
        "finish_reason": sequence.finish_reason,
        "sampling": plain | {"processors": len(sampling.processors), "stop_ids": list(sampling.stop_ids)},
        "length": repr(method.length),
        "accept": repr(method.accept),
        "drafter": type(method.drafter).__name__,
        "lossless": method.accept.lossless,
        "coupled": method.accept.coupled,
        "origin": tape.origin,
        "vocab": tape.vocab,
        "any_prefix": isinstance(method.drafter, DraftModel),
        "fresh": tape.fresh,
        "budgeted": tape.budgeted,
        "about": dict(about),
    }
