"""Every numeric convention in one place: the warp, the sampling of a weight row, entropies and the Jensen-Shannon distance.

Rules: softmax and accept arithmetic in float32 or better, cumulative sums and uniforms in float64. The order of the warp is that of
transformers: repetition penalty, processors, temperature, top-k, top-p, min-p. Temperature 0 is a one-hot row, so nothing downstream
knows of greedy decoding.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from draftwise import nucleus, wide
from draftwise.hostrow import HostRow, heat
from draftwise.nucleus import truncated, truncates
from draftwise.types import Sampling, Sparse, Target


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
        allowed = picked(truncated(adjusted[rows].float(), sampling), ids) > 0
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
    out = torch.zeros(logits.shape, device=logits.device)
    if sampling.temperature == 0:
        tops = torch.cat([_mark(part.float(), into) for part, into in _parts(logits, out)]) if len(logits) else logits.amax(-1)
    elif truncates(sampling):
        tops = torch.cat([_fill(part.float(), into, sampling) for part, into in _parts(logits, out)]) if len(logits) else logits.amax(-1)
    else:
        tops = logits.float().amax(-1)
        torch.softmax(logits.float() / heat(sampling), -1, out=out)
    if checked:
        check_finite(tops)
    return out


def _fill(rows: Tensor, into: Tensor, sampling: Sampling) -> Tensor:
    """Writes the truncated laws of `rows` [n, V] into the zeros `into`, and gives the largest entries [n, 1]."""
    if rows.device.type == "cpu" and (found := HostRow(rows[0]).support(sampling)):
        into[0].numpy()[found[0]] = found[1]
        return rows[:, found[0][0]][:, None]
    support = nucleus.searched(rows, sampling)
    into.scatter_add_(-1, *support)  # added: the ids of padding come twice
    return rows.gather(-1, support.ids[:, :1])


def drawn(logits: Tensor, sampling: Sampling, known: HostRow | None = None) -> Tensor | Sparse:
    """`law` unchecked, for a drafter above temperature 0: by its support where the request truncates, which spares rows of V entries. `known` as in
    `truncated`."""
    return truncated(logits.float(), sampling, known=known) if truncates(sampling) else law(logits, sampling, checked=False)


def _mark(rows: Tensor, into: Tensor) -> Tensor:
    """Sets 1 in the zeros `into` [n, V] where `rows` are largest, and gives those largest entries [n, 1]."""
    ids = wide.argmax(rows)[:, None]
    into.scatter_(-1, ids, 1.0)
    return rows.gather(-1, ids)


def check_finite(top: Tensor) -> None:
    """Raises BadLogits where the largest logit of a row (`top` [n]) is NaN or infinite."""
    bad = ~torch.isfinite(top)
    if bool(bad.any()):
        found = "NaN" if bool(top.isnan().any()) else "no finite entry" if bool((top == -math.inf).any()) else "+inf"
        raise BadLogits(f"the model gave a row of logits with {found}: weights that overflow (try dtype float32), or masks that forbid every token")


def sample(weights: Tensor | Sparse, u: Tensor) -> Tensor:
    """One token of each unnormalised law by inversion: int64 [B] of `weights` [B, V] >= 0 and `u` float64 [B]. Never one of weight 0."""
    if isinstance(weights, Tensor):
        return wide.invert(weights, u.to(weights.device))
    if len(u) == 1 and weights.p.device.type == "cpu":
        return weights.ids[0, _inverted(weights.p[0].tolist(), float(u))]
    cumulative = weights.p.cpu().numpy().cumsum(-1, dtype=np.float64)
    aim = np.minimum(u.cpu().numpy()[:, None] * cumulative[:, -1:], np.nextafter(cumulative[:, -1:], 0))
    return weights.ids.gather(-1, torch.from_numpy((cumulative <= aim).sum(-1, keepdims=True)).to(weights.ids.device))[:, 0]


def _inverted(weights: Sequence[float], u: float) -> Tensor:
    """`sample` of one short row: the index, int64 [1]. A row without mass gives 0."""
    total = math.fsum(weights)
    sums = list(itertools.accumulate(weights))
    aim = min(u * total, math.nextafter(sums[-1], 0))
    return torch.tensor([bisect.bisect_right(sums, aim) % len(weights)])


def residual(p: Tensor, q: Tensor) -> Tensor:
    """Where a rejected token's successor comes from: ``max(p - q, 0)`` [V], or p where that is zero everywhere (p = q up to rounding)."""
    rest = (p - q).clamp_(min=0)
    return rest if bool((rest > 0).any()) else p


def row(probs: Tensor | Sparse, i: int, vocab: int) -> Tensor:
    """Row i of a drafter's laws as a dense float32 [V]."""
    if isinstance(probs, Tensor):
        return probs[i]
    return torch.zeros(vocab, device=probs.p.device).index_put_((probs.ids[i],), probs.p[i], accumulate=True)


def stacked(laws: Sequence[Tensor | Sparse]) -> Tensor | Sparse:
    """The laws of a chain, [1, V] or of one row each, as one of N rows; supports of unequal width are filled up with probability 0."""
    dense = [some for some in laws if isinstance(some, Tensor)]
    if dense:
        return torch.cat(dense)
    return nucleus.joined([some for some in laws if isinstance(some, Sparse)])


def picked(probs: Tensor | Sparse, tokens: Tensor) -> Tensor:
    """q of the drafted tokens: float32 [N] of `probs` [N, V] and `tokens` int64 [N]."""
    tokens = tokens.to(probs.p.device if isinstance(probs, Sparse) else probs.device)
    if isinstance(probs, Tensor):
        return probs[torch.arange(len(tokens), device=tokens.device), tokens]
    return torch.where(probs.ids == tokens[:, None], probs.p, 0.0).sum(-1)


def confidence(logits: Tensor, tokens: Tensor) -> Tensor:
    """What a `DraftStep` records: float32 [n, 4] = (probability of the token, top 1, top 2, entropy in nats) of the raw softmax of
    `logits` [n, V] at `tokens` [n]."""
    if logits.device.type == "cpu":
        return torch.tensor([HostRow(row.float()).figures(token) for row, token in zip(logits, tokens.tolist(), strict=True)]).view(len(logits), 4)
    raw = logits.float()
    top = raw.topk(min(2, raw.shape[-1]), -1).values
    shifted = raw - top[:, :1]
    weights = shifted.exp()
    total = weights.sum(-1, keepdim=True)
    entropy = total.log() - weights.mul(shifted.clamp(min=-1e4)).sum(-1, keepdim=True) / total  # the clamp makes 0 * -inf the 0 it should be
    second = (top[:, 1:] - top[:, :1]).exp() / total if top.shape[1] > 1 else torch.zeros_like(total)
    return torch.cat([weights.gather(-1, tokens[:, None]) / total, 1 / total, second, entropy], -1)


def js_distance(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """Jensen-Shannon **distance** (the root, log base 2, in [0, 1]) of the raw softmaxes: float32 [n] of two [n, V].

    With m = (p+q)/2 and r = (p-q)/(p+q): JSD = 1/2 sum m [(1+r) ln(1+r) + (1-r) ln(1-r)]. No term is negative, so that equal rows give 0
    and not the root of a rounding error. Computed as r [ln(1+r) - ln(1-r)] + ln(1+r) + ln(1-r)."""
    if not len(p_logits):
        return torch.zeros(0, device=p_logits.device)
    return torch.cat([_js(p, q) for p, q in _parts(p_logits, q_logits)])


def _js(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    p, q = p_logits.softmax(-1, dtype=torch.float32), q_logits.softmax(-1, dtype=torch.float32)
    both = p + q
    ratio = p.sub_(q).div_(torch.clamp(both, min=1e-38, out=q)).clamp_(-1 + 1e-7, 1 - 1e-7)
    up, down = torch.log1p(ratio, out=q), ratio.neg().log1p_()  # written over what is not needed again: fewer rows stay in the cache
    terms = up.addcmul_(up, ratio).add_(down.addcmul_(down, ratio, value=-1))
    return (terms.mul_(both).sum(-1) / (4 * math.log(2))).clamp(0, 1).sqrt()


def _parts(*rows: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of the same rows of all, a few at a time: on a CPU one, whose intermediates stay in the cache of a core; on a device all."""
    size = max(1, len(rows[0])) if rows[0].device.type != "cpu" else 1
    return zip(*(torch.split(some, size) for some in rows), strict=True)


def _penalised(row: Tensor, penalty: float, ids: Sequence[int]) -> Tensor:
    """CTRL's repetition penalty (Keskar et al. 2019): logits of seen ids divided by it when positive, multiplied when negative."""
    if penalty == 1 or not ids:
        return row
    seen = torch.tensor(sorted(set(ids)), device=row.device)
    values = row[seen]
    return row.index_copy(0, seen, torch.where(values > 0, values / penalty, values * penalty))
