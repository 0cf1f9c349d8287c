"""What is noted of one judgement, and of the token that a draft model would have proposed after a draft that was accepted whole.

That token is asked for after the answer is done, on the text as it went on, since it depends on the text before it and on nothing else. Above
temperature 0 it is drawn, with its uniform, from their law **given** that the rejection test wrote what the target wrote there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from draftwise import noise, probs
from draftwise.bench.trace import FIGURES, LAWS, TOP
from draftwise.evidence import Live, tops
from draftwise.methods.draft_model import DraftModel
from draftwise.protocols import Ask
from draftwise.sequence import Sequence as Decoding
from draftwise.types import Draft, DraftStep, Target, Text, Uniforms

_SLOT = 1_000_000  # of the drafter, for questions after the answer: no running sequence has it
_LEVEL = 1 << 20  # of the random stream that those questions draw from: no cascade is as deep
_NOTHING = (math.nan,) * len(FIGURES)


class Open(NamedTuple):
    """Of the row after a draft that was accepted whole: the target's raw `logits` [1, V], and the shared noise [1, V] of a coupled rule."""

    logits: Tensor
    race: Tensor | None


def noted(target: Target, draft: Draft, u: Uniforms) -> tuple[list[dict[str, Any]], list[int]]:
    """The token columns of one judgement, and what the target itself draws at each of its rows."""
    live = Live(target, draft, u)
    n = len(live)
    rows = len(target.p)
    choices = [live.choice(i) for i in range(rows)] if u.race is not None else probs.sample(target.p, u.sample[:rows]).tolist()
    if not n:
        return [], choices
    distances = probs.js_distance(target.logits[:n], draft.logits.to(target.logits.device)).tolist() if draft.logits is not None else [math.nan] * n
    drafted = tops(draft.logits, [step.top1 for step in draft.steps]) if draft.logits is not None and draft.steps else [[]] * n
    found = []
    for i in range(n):
        laws = (live.law(i), live.raw(i), draft.steps[i][2:] if draft.steps else _NOTHING)
        entry: dict[str, Any] = {
            f"{law}_{name}": value for law, values in zip(LAWS, laws, strict=True) for name, value in zip(FIGURES, values, strict=True)
        }
        entry |= {"token": live.token(i), "choice": choices[i], "match": live.match(i), "allowed": live.allowed(i), "distance": distances[i]}
        entry |= {"u": live.chance(i).u, "q": live.chance(i).q, "sample": float(u.sample[i])}
        found.append(entry | _stored("target", live.top(i)) | _stored("draft", drafted[i]))
    return found, choices


def _stored(side: str, top: Sequence[tuple[int, float]]) -> dict[str, list[Any]]:
    padded = [*top, *[(-1, 0.0)] * (TOP - len(top))]
    return {f"{side}_ids": [token for token, _ in padded], f"{side}_probs": [p for _, p in padded]}


def propose(drafter: DraftModel, sequence: Decoding, asked: Mapping[int, Open]) -> dict[int, list[dict[str, Any]]]:
    """By position in the text (keys of `asked`): the columns of the token that would have been proposed there; none where the text or the
    drafter's context ends."""
    streams = noise.Noise(sequence.text.sampling.seed, sequence.method.accept.coupled)
    text = sequence.text._replace(id=-1, slot=_SLOT, noise=streams)
    try:
        ends = [end for end in sorted(asked) if end < len(sequence.tokens)]
        return {end: _next(drafter, text._replace(tokens=sequence.tokens[:end]), sequence.tokens[end], asked[end]) for end in ends}
    finally:
        drafter.free(text)


def _next(drafter: DraftModel, text: Text, written: int, asked: Open) -> list[dict[str, Any]]:
    """The columns of one proposal after `text`, where the target wrote `written`."""
    draft = drafter.propose([Ask(text, 1, None, True)])[0]
    if not len(draft.tokens) or draft.logits is None:
        return []
    streams, here = noise.Noise(text.sampling.seed), len(text.tokens)
    u = Uniforms(torch.zeros(1, dtype=torch.float64), streams.at(noise.SAMPLE, 0, here, 2), None if asked.race is None else asked.race.repeat(2, 1))
    logits = asked.logits.repeat(2, 1)  # a target has one row more than there are tokens
    if draft.probs is not None:
        p = probs.warp(asked.logits, text.sampling, lambda _: text.tokens)[0]
        q = probs.row(draft.probs, 0, len(p)).to(p.device)
        token, accept = given(p, q, written, streams.at(noise.DRAFT, _LEVEL, 3 * here, 3).tolist())
        figures = probs.confidence(draft.logits, torch.tensor([token], device=draft.logits.device)).tolist()[0]
        draft = draft._replace(tokens=torch.tensor([token]), steps=(DraftStep(0, token, *figures),))
        u = u._replace(accept=torch.tensor([accept], dtype=torch.float64))
    return noted(probs.judged(logits, text.sampling, lambda _: text.tokens, draft.tokens), draft, u)[0]


def given(p: Tensor, q: Tensor, written: int, chances: Sequence[float]) -> tuple[int, float]:
    """A draft token and its uniform as the rejection test sees them, drawn given that the test wrote `written`: with probability min(1, q / p)
    that token, accepted; else one of max(q - p, 0), refused. `p`, `q`: [V]. `chances`: three uniforms."""
    first, second, third = chances
    p_y, q_y = float(p[written]), float(q[written])
    rest = (q - p).clamp_(min=0)
    if first * p_y < q_y or not bool((rest > 0).any()):
        return written, second * min(1.0, p_y / q_y) if q_y else 0.0
    token = int(probs.sample(rest[None], torch.tensor([third], dtype=torch.float64))[0])
    ratio = float(p[token]) / float(q[token])
    return token, ratio + (1 - ratio) * second
