"""`verify`: the one place that feeds, forwards, warps, judges, samples and keeps. The engine calls it, and so does every level of a cascade."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from draftwise import noise, probs
from draftwise.protocols import Accept, Backend, Encodes, Relax, always
from draftwise.trees import attach, children, levels, path_to
from draftwise.types import Draft, DraftStep, Feed, Outcome, Rows, Target, Text, Uniforms, Verdict

NOTHING = Draft(torch.zeros(0, dtype=torch.long))


class Judging(NamedTuple):
    """One sequence's part of a verification. `level`: of its random streams (0 = the target the user sees). `laws`: hand up the model's
    laws of the emitted tokens."""

    text: Text
    draft: Draft
    accept: Accept
    state: Any
    level: int = 0
    relax: Relax = always
    laws: bool = False


class _Found(NamedTuple):
    verdict: Verdict
    state: Any
    u: Tensor
    target: Target


def verify(model: Backend, judgings: Sequence[Judging], chunk: int = 256) -> list[Outcome]:
    """One forward of `model` over all sequences: the tokens its caches lack, then the drafts. Where more than `chunk` tokens are lacking
    only the first `chunk` are read, nothing is judged, and ``last`` is None. Caches end at the accepted path. Raises BadLogits."""
    feeds = [_feed(model, judging, chunk) for judging in judgings]
    rows = model.forward(feeds)
    found = [_judge(j, r) if feed.want else None for j, feed, r in zip(judgings, feeds, rows, strict=True)]
    lasts = iter(_draw([f for f in found if f is not None]))
    return [_settle(model, j, feed, r, f, next(lasts) if f else None) for j, feed, r, f in zip(judgings, feeds, rows, found, strict=True)]


def judged(draft: Draft, path: list[int]) -> tuple[DraftStep, ...]:
    """What the drafter knew of the tokens that a round judged, as policies read it: of a chain all; of a tree, one a level: those of the accepted
    path and of the first that was tried after it."""
    if draft.parents is None or not draft.steps:
        return draft.steps
    tried = children(draft.parents, len(draft.tokens))[path[-1] if path else -1][:1]
    return tuple(draft.steps[i]._replace(index=level) for level, i in enumerate([*path, *tried]))


def source_for(model: Backend, text: Text) -> Tensor | None:
    """What a feed of `text` brings as its source: only a model with an encoder gets one."""
    return text.source if text.source is not None and isinstance(model, Encodes) else None


def reads(model: Backend, text: Text) -> bool:
    """Whether a model that drafts can read what the text was written from: an encoder may be too small for a source that the target's reads."""
    return not isinstance(model, Encodes) or model.length(text.slot) > 0 or not model.refusal(text.source)


def _feed(model: Backend, judging: Judging, chunk: int) -> Feed:
    text, draft = judging.text, judging.draft
    length, source = model.length(text.slot), source_for(model, text)
    pending = torch.tensor(text.tokens[length : length + chunk])
    if length + chunk < len(text.tokens):
        if len(draft.tokens):
            raise ValueError(f"sequence {text.id} was drafted for although {len(text.tokens) - length} tokens of it are unread (chunk {chunk})")
        return Feed(text.slot, pending, 0, source=source)
    n = len(draft.tokens)
    return Feed(text.slot, torch.cat([pending, draft.tokens]), n + 1, attach(len(pending), draft.parents, n), source)


def _judge(judging: Judging, rows: Rows) -> _Found:
    text, draft = judging.text, judging.draft
    target = probs.judged(rows.logits, text.sampling, lambda i: _history(text, draft, i), draft.tokens, draft.parents)
    u = _uniforms(judging, rows.logits.shape[-1])
    verdict, state = judging.accept.judge(target, draft, u, judging.state, judging.relax)
    return _Found(verdict, state, u.sample[len(verdict.path)], target)


def _history(text: Text, draft: Draft, i: int) -> list[int]:
    """The ids before row i: the committed text and, for i > 0, draft token i-1 with its ancestors."""
    before = range(i) if draft.parents is None else path_to(draft.parents, i - 1) if i else ()
    return [*text.tokens, *(int(draft.tokens[j]) for j in before)]


def _uniforms(judging: Judging, vocab: int) -> Uniforms:
    text, n, level = judging.text, len(judging.draft.tokens), judging.level
    position, places = len(text.tokens), levels(judging.draft.parents, n) + 1
    race = text.noise.race(0, position, places, vocab) if judging.accept.coupled and text.sampling.temperature > 0 else None
    # below the target a position may be drawn again after a rejection above, and must not get the numbers it had
    sample = text.noise.fresh(noise.SAMPLE, level, places) if level else text.noise.at(noise.SAMPLE, level, position, places)
    return Uniforms(text.noise.fresh(noise.ACCEPT, level, n), sample, race)


def _draw(found: Sequence[_Found]) -> list[int]:
    """The tokens after all paths, in one transfer to the host."""
    if not found:
        return []
    tokens: list[int] = probs.sample(torch.stack([f.verdict.weights for f in found]), torch.stack([f.u for f in found])).tolist()
    return tokens


def _settle(model: Backend, judging: Judging, feed: Feed, rows: Rows, found: _Found | None, last: int | None) -> Outcome:
    fed = len(feed.tokens)
    if found is None or last is None:
        return Outcome([], None, (), judging.state, rows, fed=fed)
    path, relaxed = found.verdict.path, found.verdict.relaxed
    base = len(judging.text.tokens)
    if judging.draft.parents is None:
        model.keep(feed.slot, base + len(path))
    else:
        model.keep(feed.slot, base, [base + i for i in path])
    judges = [0, *(i + 1 for i in path)]  # the rows that spoke of the emitted tokens
    laws = found.target.p[judges] if judging.laws else None
    logprobs = _logprobs(found.target.logits[judges], [*judging.draft.tokens[path].tolist(), last]) if judging.text.sampling.logprobs else ()
    return Outcome(path, last, relaxed, found.state, rows, laws, logprobs, fed)


def _logprobs(logits: Tensor, tokens: list[int]) -> tuple[float, ...]:
    ids = torch.tensor(tokens, device=logits.device)
    return tuple(logits.float().log_softmax(-1).gather(-1, ids[:, None])[:, 0].tolist())
