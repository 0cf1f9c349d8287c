"""Every numeric convention in one place: the warp, the sampling of a weight row, entropies and the Jensen-Shannon distance.

Rules: softmax and accept arithmetic in float32 or better, cumulative sums and uniforms in float64. The order of the warp is that of
transformers: repetition penalty, processors, temperature, top-k, top-p, min-p. Temperature 0 is a one-hot row, so nothing downstream
knows of greedy decoding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from draftwise import wide
from draftwise.types import Sampling, Sparse, Target

_PREFIX = 64  # entries that are sorted first: most laws are cut within them
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
        rows = logits.float()
        support = truncated(rows, sampling)
        tops = rows.gather(-1, support.ids[:, :1])
        out.scatter_add_(-1, *support)  # added: the ids of padding come twice
    else:
        tops = logits.float().amax(-1)
        torch.softmax(logits.float() / _heat(sampling), -1, out=out)
    if checked:
        check_finite(tops)
    return out


def drawn(logits: Tensor, sampling: Sampling) -> Tensor | Sparse:
    """`law` unchecked, for a drafter above temperature 0: by its support where the request truncates, which spares rows of V entries."""
    return truncated(logits.float(), sampling) if truncates(sampling) else law(logits, sampling, checked=False)


def _mark(rows: Tensor, into: Tensor) -> Tensor:
    """Sets 1 in the zeros `into` [n, V] where `rows` are largest, and gives those largest entries [n, 1]."""
    ids = wide.argmax(rows)[:, None]
    into.scatter_(-1, ids, 1.0)
    return rows.gather(-1, ids)


def _heat(sampling: Sampling) -> float:
    """What logits are divided by: 1 at temperature 0, where only the order and the truncation count."""
    return max(sampling.temperature, _COLDEST) if sampling.temperature else 1.0


def truncates(sampling: Sampling) -> bool:
    """Whether the request cuts the tail of a law."""
    return sampling.top_k > 0 or sampling.top_p < 1 or sampling.min_p > 0


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
    cumulative = weights.p.cpu().numpy().cumsum(-1, dtype=np.float64)
    aim = np.minimum(u.cpu().numpy()[:, None] * cumulative[:, -1:], np.nextafter(cumulative[:, -1:], 0))
    return weights.ids.gather(-1, torch.from_numpy((cumulative <= aim).sum(-1, keepdims=True)).to(weights.ids.device))[:, 0]


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
    sparse = [some for some in laws if isinstance(some, Sparse)]
    width = max(some.p.shape[-1] for some in sparse)
    padded = [[torch.nn.functional.pad(part, (0, width - part.shape[-1])) for part in some] for some in sparse]
    return Sparse(torch.cat([ids for ids, _ in padded]), torch.cat([p for _, p in padded]))


def picked(probs: Tensor | Sparse, tokens: Tensor) -> Tensor:
    """q of the drafted tokens: float32 [N] of `probs` [N, V] and `tokens` int64 [N]."""
    tokens = tokens.to(probs.p.device if isinstance(probs, Sparse) else probs.device)
    if isinstance(probs, Tensor):
        return probs[torch.arange(len(tokens), device=tokens.device), tokens]
    return torch.where(probs.ids == tokens[:, None], probs.p, 0.0).sum(-1)


def confidence(logits: Tensor, tokens: Tensor) -> Tensor:
    """What a `DraftStep` records: float32 [n, 4] = (probability of the token, top 1, top 2, entropy in nats) of the raw softmax of
    `logits` [n, V] at `tokens` [n]."""
    if not logits.is_cuda:
        return torch.tensor([_figures(row.float(), token) for row, token in zip(logits, tokens.tolist(), strict=True)]).view(len(logits), 4)
    raw = logits.float()
    top = raw.topk(min(2, raw.shape[-1]), -1).values
    shifted = raw - top[:, :1]
    weights = shifted.exp()
    total = weights.sum(-1, keepdim=True)
    entropy = total.log() - weights.mul(shifted.clamp(min=-1e4)).sum(-1, keepdim=True) / total  # the clamp makes 0 * -inf the 0 it should be
    second = (top[:, 1:] - top[:, :1]).exp() / total if top.shape[1] > 1 else torch.zeros_like(total)
    return torch.cat([weights.gather(-1, tokens[:, None]) / total, 1 / total, second, entropy], -1)


def _figures(row: Tensor, token: int) -> tuple[float, float, float, float]:
    """`confidence` of one float32 row [V] on the host, where every small tensor costs more than a float."""
    top, second = wide.two(row)
    shifted = row - top
    weights = shifted.exp()
    total = float(weights.sum())
    spread = float(weights @ shifted.clamp_(min=-1e4))
    return float(weights[token]) / total, 1 / total, math.exp(second - top) / total, math.log(total) - spread / total


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
    size = max(1, len(rows[0])) if rows[0].is_cuda else 1
    return zip(*(torch.split(some, size) for some in rows), strict=True)


def _penalised(row: Tensor, penalty: float, ids: Sequence[int]) -> Tensor:
    """CTRL's repetition penalty (Keskar et al. 2019): logits of seen ids divided by it when positive, multiplied when negative."""
    if penalty == 1 or not ids:
        return row
    seen = torch.tensor(sorted(set(ids)), device=row.device)
    values = row[seen]
    return row.index_copy(0, seen, torch.where(values > 0, values / penalty, values * penalty))


def truncated(rows: Tensor, sampling: Sampling, prefix: int = _PREFIX) -> Sparse:
    """Temperature, top-k, top-p and min-p of float32 logits `rows` [n, V]: laws by their supports, likeliest token first. The `prefix` largest
    entries are looked at first, and the whole rows only where those do not decide."""
    vocab, heat = rows.shape[-1], np.float32(_heat(sampling))
    count = min(vocab, max(prefix, sampling.top_k + 1))
    found, ids = wide.largest(rows, count)
    values = found.cpu().numpy() / heat
    least = _weights(values).sum(-1, keepdims=True, dtype=np.float64)
    weights = _cut(values, least, sampling)
    if sampling.top_p < 1 and not sampling.top_k:
        most = least + (vocab - count) * _weights(values)[:, -1:]  # of the whole row: no entry left is larger than the last
        if (weights[:, -1] > 0).any() or not np.array_equal(weights, _cut(values, most, sampling)):
            least = torch.cat([_mass(part, top, float(heat)) for part, top in _parts(rows, found[:, :1])]).cpu().numpy()
            weights = _cut(values, least, sampling)
    if count < vocab and (weights[:, -1] > 0).any():  # the cut of a row lies further out
        values, ids = _candidates(rows, values, least, sampling)
        weights = _cut(values, least, sampling)
    with np.errstate(invalid="ignore"):  # a law without mass is NaN
        law = weights / weights.sum(-1, keepdims=True)
    return Sparse(ids, torch.from_numpy(law.astype(np.float32)).to(rows.device))


def _weights(values: NDArray[np.float32]) -> NDArray[np.float32]:
    with np.errstate(invalid="ignore"):  # -inf - -inf
        weights: NDArray[np.float32] = np.exp(values - values[:, :1])
    return weights


def _mass(rows: Tensor, top: Tensor, heat: float) -> Tensor:
    """The sum [n, 1] of all weights ``exp((row - top) / heat)``."""
    return ((rows - top) / heat).exp_().sum(-1, keepdim=True, dtype=torch.float64)


def _cut(values: NDArray[np.float32], mass: NDArray[np.float64], sampling: Sampling) -> NDArray[np.float64]:
    """The weights ``exp(value - largest)`` [n, K] of the largest entries `values` [n, K] in falling order, 0 for those that fall away. `mass`
    [n, 1]: the sum of all weights of the rows; after top-k, of those that are left."""
    kept = values > -math.inf
    if 0 < sampling.top_k < values.shape[-1]:
        kept &= values >= values[:, sampling.top_k - 1 : sampling.top_k]  # ties stay, as in transformers
    weights = np.where(kept, _weights(values), 0).astype(np.float64)
    if sampling.top_p < 1:
        shares = weights / (weights.sum(-1, keepdims=True) if sampling.top_k else mass)
        kept &= shares.cumsum(-1) - shares < sampling.top_p
    if sampling.min_p > 0:
        kept &= values >= values[:, :1] + np.float32(math.log(sampling.min_p))
    kept[:, 0] = True
    return np.where(kept, weights, 0)


def _candidates(
    rows: Tensor, values: NDArray[np.float32], mass: NDArray[np.float64], sampling: Sampling
) -> tuple[NDArray[np.float32], Tensor]:
    """The largest tempered entries in falling order, as many as may be kept, and their indices: two [n, K]. Entries that each have less than a
    V-th of ``1 - top_p`` have less than that together, so none of them is in the nucleus. (A full sort of a wide row takes many times as long.)"""
    bound = np.full_like(values[:, :1], -math.inf)
    if sampling.top_k > 0:
        bound = np.maximum(bound, values[:, sampling.top_k - 1 : sampling.top_k])
    elif sampling.top_p < 1:
        bound = np.maximum(bound, values[:, :1] + np.log(mass * ((1 - sampling.top_p) / rows.shape[-1] / 2)))  # 2: for rounding
    if sampling.min_p > 0:
        bound = np.maximum(bound, values[:, :1] + math.log(sampling.min_p))
    heat = np.float32(_heat(sampling))
    ranked = []
    for row, low in zip(rows, bound[:, 0].tolist(), strict=True):
        tempered = row / heat
        ids = (tempered >= low).nonzero()[:, 0]
        ranked.append((tempered[ids].sort(descending=True), ids))
    width, pad = max(len(ids) for _, ids in ranked), torch.nn.functional.pad
    return (
        torch.stack([pad(order.values, (0, width - len(ids)), value=-math.inf) for order, ids in ranked]).cpu().numpy(),
        torch.stack([pad(ids[order.indices], (0, width - len(ids))) for order, ids in ranked]),
    )
