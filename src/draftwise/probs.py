"""Every numeric convention in one place: the warp, the sampling of a weight row, entropies and the Jensen-Shannon distance.

Rules: softmax and accept arithmetic in float32 or better, cumulative sums and uniforms in float64. The order of the warp is that of
transformers: repetition penalty, processors, temperature, top-k, top-p, min-p. Temperature 0 is a one-hot row, so nothing downstream
knows of greedy decoding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from draftwise import wide
from draftwise.types import Sampling, Sparse, Target

_PREFIXES = (64, 1024)  # entries that are sorted before all are: most laws are cut within the first
_COLDEST = 1e-30  # a temperature under it divides by 0 in float32, or overflows; the law is one-hot long before


class BadLogits(ValueError):
    """A model gave rows that are no law: NaN, +inf, or -inf everywhere."""


def warp(logits: Tensor, sampling: Sampling, history: Callable[[int], Sequence[int]]) -> Tensor:
    """The laws that decoding samples from: float32 [n, V] of raw `logits` [n, V]. `history(i)` gives the ids before row i."""
    return law(adjust(logits, sampling, history), sampling)


def judged(logits: Tensor, sampling: Sampling, history: Callable[[int], Sequence[int]], tokens: Tensor, parents: Tensor | None = None) -> Target:
    """The `Target` of a draft: `logits` [N+1, V], whose row 0 follows the committed text; `tokens` and `parents` int64 [N] of the draft, on
    the host. Token i is judged by row ``parents[i] + 1``; in a chain that is row i."""
    adjusted = adjust(logits, sampling, history)
    p = law(adjusted, sampling)
    rows = (torch.arange(len(tokens)) if parents is None else parents + 1).to(logits.device)
    ids = tokens.to(logits.device)
    if sampling.temperature > 0:
        allowed = p[rows, ids] > 0
    elif truncates(sampling):
        allowed = _truncated(adjusted.float(), sampling)[rows, ids] > 0
    else:
        allowed = adjusted[rows, ids] > -math.inf
    return Target(p, logits, allowed.cpu())


def adjust(logits: Tensor, sampling: Sampling, history: Callable[[int], Sequence[int]]) -> Tensor:
    """Repetition penalty and processors: [n, V]; the very same tensor when the request has neither."""
    if sampling.repetition_penalty == 1 and not sampling.processors:
        return logits
    rows = []
    for i, row in enumerate(logits.float()):
        ids = history(i)
        row = _penalised(row, sampling.repetition_penalty, ids)
        for process in sampling.processors:
            row = process(ids, row)
        rows.append(row)
    return torch.stack(rows)


def law(logits: Tensor, sampling: Sampling, checked: bool = True) -> Tensor:
    """Temperature and truncation: float32 laws [n, V] of adjusted `logits` [n, V]. Raises BadLogits; ``checked=False`` leaves that test
    out, since a device has to be waited for."""
    if checked:
        check_finite(logits.amax(-1))
    if sampling.temperature == 0:
        return torch.zeros(logits.shape, device=logits.device).scatter_(-1, wide.argmax(logits)[:, None], 1.0)
    scaled = _own(logits).div_(max(sampling.temperature, _COLDEST))
    return _truncated(scaled, sampling) if truncates(sampling) else scaled.softmax(-1)


def truncates(sampling: Sampling) -> bool:
    """Whether the request cuts the tail of a law."""
    return sampling.top_k > 0 or sampling.top_p < 1 or sampling.min_p > 0


def check_finite(top: Tensor) -> None:
    """Raises BadLogits where the largest logit of a row (`top` [n]) is NaN or infinite."""
    bad = ~torch.isfinite(top)
    if bool(bad.any()):
        found = "NaN" if bool(top.isnan().any()) else "no finite entry" if bool((top == -math.inf).any()) else "+inf"
        raise BadLogits(f"the model gave a row of logits with {found}: weights that overflow (try dtype float32), or masks that forbid every token")


def sample(weights: Tensor, u: Tensor) -> Tensor:
    """One token of each unnormalised law by inversion: int64 [B] of `weights` [B, V] >= 0 and `u` float64 [B]. Never one of weight 0."""
    return wide.invert(weights, u.to(weights.device))


def residual(p: Tensor, q: Tensor) -> Tensor:
    """Where a rejected token's successor comes from: ``max(p - q, 0)`` [V], or p where that is zero everywhere (p = q up to rounding)."""
    rest = (p - q).clamp_(min=0)
    return rest if bool((rest > 0).any()) else p


def row(probs: Tensor | Sparse, i: int, vocab: int) -> Tensor:
    """Row i of a drafter's laws as a dense float32 [V]."""
    if isinstance(probs, Tensor):
        return probs[i]
    return torch.zeros(vocab, device=probs.p.device).index_put_((probs.ids[i],), probs.p[i], accumulate=True)


def picked(probs: Tensor | Sparse, tokens: Tensor) -> Tensor:
    """q of the drafted tokens: float32 [N] of `probs` [N, V] and `tokens` int64 [N]."""
    tokens = tokens.to(probs.p.device if isinstance(probs, Sparse) else probs.device)
    if isinstance(probs, Tensor):
        return probs[torch.arange(len(tokens), device=tokens.device), tokens]
    return torch.where(probs.ids == tokens[:, None], probs.p, 0.0).sum(-1)


def confidence(logits: Tensor, tokens: Tensor) -> Tensor:
    """What a `DraftStep` records: float32 [n, 4] = (probability of the token, top 1, top 2, entropy in nats) of the raw softmax of
    `logits` [n, V] at `tokens` [n]."""
    shifted = _own(logits)
    top = wide.largest(shifted, min(2, shifted.shape[-1]))[0]
    shifted -= top[:, :1]
    weights = shifted.exp()
    total = weights.sum(-1, keepdim=True)
    entropy = total.log() - weights.mul_(shifted.clamp(min=-1e4)).sum(-1, keepdim=True) / total  # the clamp makes 0 * -inf the 0 it should be
    second = (top[:, 1:] - top[:, :1]).exp() / total if top.shape[1] > 1 else torch.zeros_like(total)
    return torch.cat([shifted.gather(-1, tokens[:, None]).exp() / total, 1 / total, second, entropy], -1)


def js_distance(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """Jensen-Shannon **distance** (the root, log base 2, in [0, 1]) of the raw softmaxes: float32 [n] of two [n, V].

    With m = (p+q)/2 and r = (p-q)/(p+q): JSD = 1/2 sum m [(1+r) ln(1+r) + (1-r) ln(1-r)]. No term is negative, so that equal rows give 0
    and not the root of a rounding error. Computed as r [ln(1+r) - ln(1-r)] + ln(1+r) + ln(1-r)."""
    if not len(p_logits):
        return torch.zeros(0, device=p_logits.device)
    size = len(p_logits) if p_logits.is_cuda else 1  # one row at a time stays in the cache of a core
    return torch.cat([_js(p_logits[i : i + size], q_logits[i : i + size]) for i in range(0, len(p_logits), size)])


def _js(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    p, q = p_logits.float().softmax(-1), q_logits.float().softmax(-1)
    both = p + q
    ratio = p.sub_(q).div_(both.clamp(min=1e-38)).clamp_(-1 + 1e-7, 1 - 1e-7)
    up, down = torch.log1p(ratio), torch.log1p(-ratio)
    terms = ratio.mul_(up - down).add_(up).add_(down)
    return (terms.mul_(both).sum(-1) / (4 * math.log(2))).clamp(0, 1).sqrt()


def _own(logits: Tensor) -> Tensor:
    """A float32 copy that may be written."""
    return logits.to(torch.float32, copy=True)


def _penalised(row: Tensor, penalty: float, ids: Sequence[int]) -> Tensor:
    """CTRL's repetition penalty (Keskar et al. 2019): logits of seen ids divided by it when positive, multiplied when negative."""
    if penalty == 1 or not ids:
        return row
    seen = torch.tensor(sorted(set(ids)), device=row.device)
    values = row[seen]
    return row.index_copy(0, seen, torch.where(values > 0, values / penalty, values * penalty))


def _truncated(logits: Tensor, sampling: Sampling, prefix: int = _PREFIXES[0]) -> Tensor:
    """Top-k, top-p and min-p of tempered float32 `logits` [n, V], from the largest entries only where those decide everything."""
    vocab = logits.shape[-1]
    count = min(vocab, max(prefix, sampling.top_k + 1))
    values, ids = wide.largest(logits, count)
    kept = values > -math.inf
    if 0 < sampling.top_k < count:
        kept &= values >= values[:, sampling.top_k - 1 : sampling.top_k]  # ties stay, as in transformers
    top = values[:, :1]
    weights = (values - top).exp().masked_fill_(~kept, 0.0)
    if sampling.top_p < 1:
        mass = weights.sum(-1, keepdim=True) if sampling.top_k else (logits - top).exp_().sum(-1, keepdim=True)
        shares = weights.double() / mass
        kept &= shares.cumsum(-1) - shares < sampling.top_p
    if sampling.min_p > 0:
        kept &= values >= top + math.log(sampling.min_p)
    kept[:, 0] = True
    weights.masked_fill_(~kept, 0.0)
    out = torch.zeros_like(logits).scatter_(-1, ids, weights / weights.sum(-1, keepdim=True))
    if count < vocab and bool((further := kept[:, -1]).any()):  # the cut of these rows lies further out
        out[further] = _truncated(logits[further], sampling, next((size for size in _PREFIXES if size > count), vocab))
    return out
