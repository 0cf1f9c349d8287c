"""Data without behaviour: what travels between a drafter, a target, a length policy and an acceptance rule.

Fixed letters of all shapes: ``B`` sequences, ``N`` draft tokens of one sequence, ``V`` vocabulary, ``H`` hidden, ``L`` cache length.
Fixed words: ``p`` is the target's law after `draftwise.probs.warp`, ``q`` the law a draft token was really drawn from, ``u`` a uniform in [0, 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from torch import Tensor

if TYPE_CHECKING:
    from draftwise.noise import Noise

Processor = Callable[[Sequence[int], Tensor], Tensor]
"""A pure function of (ids before the row, row [V]) giving the changed row [V]."""

Origin = Literal["drafted", "relaxed", "target"]
"""Who wrote a token: drafted and accepted, accepted by relaxation only, or written by the target itself."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one request draws its tokens and when it ends. Order of the warp: repetition penalty, `processors`, temperature,
    top-k, top-p, min-p.

    ``temperature=0`` is greedy decoding. ``top_k=0``, ``top_p=1``, ``min_p=0`` and ``repetition_penalty=1`` switch their rule off.
    `seed` fixes the random streams (see `draftwise.noise`). Generation ends after `max_tokens` tokens or with the first of `stop_ids`,
    which is kept as the last token. `logprobs` asks for the log-probability of every emitted token under the warped target.

    Raises ValueError for a value outside its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    max_tokens: int = 256
    stop_ids: tuple[int, ...] = ()
    logprobs: bool = False
    processors: tuple[Processor, ...] = ()

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature must be a finite number >= 0 (0 is greedy decoding), got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1] (1 switches it off), got {self.top_p}")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p must be in [0, 1] (0 switches it off), got {self.min_p}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be >= 0 (0 switches it off), got {self.top_k}")
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0):
            raise ValueError(f"repetition_penalty must be a finite number > 0 (1 switches it off), got {self.repetition_penalty}")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must be in [0, 2**64), got {self.seed}")


class Text(NamedTuple):
    """What a drafter may know of one sequence. `tokens` is the committed text, the engine's own list: read it, never write it. `source`: what an
    encoder-decoder target writes it from, int64 [S] or features; its `tokens` are the decoder's alone. `foreign`: the source's ids are those of
    another vocabulary than the text's."""

    id: int
    slot: int
    tokens: Sequence[int]
    sampling: Sampling
    noise: Noise
    source: Tensor | None = None
    foreign: bool = False

    def copyable(self) -> Tensor | None:
        """The ids [S] of a source that mean in the text what they mean there; None where there are none."""
        return None if self.source is None or self.foreign or self.source.is_floating_point() else self.source


class DraftStep(NamedTuple):
    """What the drafter knew of one draft token: plain floats of the **raw** softmax of its row (entropy in nats), or its own estimate of them."""

    index: int  # type: ignore[assignment]  # the design's name; tuple.index is not wanted here
    token: int
    prob: float
    top1: float
    top2: float
    entropy: float


class Sparse(NamedTuple):
    """A law given by its support: `ids` int64 [N, K] and their probabilities `p` float32 [N, K]; zero everywhere else.

    Ids of probability above 0 are distinct in a row; a row with fewer than K entries is filled with probability 0."""

    ids: Tensor
    p: Tensor


class Draft(NamedTuple):
    """One sequence's proposal. `tokens` int64 [N] lies on the host (N may be 0).

    `probs` float32 [N, V]: row i is the law token i was really drawn from given the text before it; None = chosen without chance
    (always so at temperature 0 and under shared noise). `logits` [N, V]: raw draft logits, only if the acceptance rule wants them.
    `parents` int64 [N]: -1 = root, parents before children; None = a chain. `steps`: one per token, or empty where the drafter says nothing.

    Of a tree, siblings are judged in the order they stand in, and token i's law is what it was drawn from **given** its earlier siblings: drawn
    without replacement, the law without them, renormalised; with replacement, the same law again; None, siblings chosen without chance (and
    distinct). Where a law goes with them, tokens are drawn in an order in which parents and earlier siblings come first, whether there is to
    be another one is settled before it is drawn, and each that was drawn is handed up. Then every draft keeps the target's law.
    """

    tokens: Tensor
    probs: Tensor | Sparse | None = None
    logits: Tensor | None = None
    parents: Tensor | None = None
    steps: tuple[DraftStep, ...] = ()
    origin: str = "none"


class Target(NamedTuple):
    """What the target said of a draft. Row 0 follows the committed text, row i+1 follows draft token i.

    `p` float32 [N+1, V]: warped, what plain decoding would sample from. `logits` [N+1, V]: raw, in the model's dtype.
    `allowed` bool [N], on the host: draft token i survives the processors and the truncation (the one-hot p of temperature 0 hides that).
    """

    p: Tensor
    logits: Tensor
    allowed: Tensor


class Uniforms(NamedTuple):
    """The randomness of one judgement, float64 in [0, 1). `accept` [N], fresh every round, one for each draft token. `sample` [D+1], D levels
    (chain: N), by output position: entry d belongs to depth d. `race` [D+1, V]: Gumbel noise by output position, shared with the drafter; None
    unless the rule is coupled."""

    accept: Tensor
    sample: Tensor
    race: Tensor | None = None


class Verdict(NamedTuple):
    """`path`: indices of the accepted draft tokens, root first (chain: ``range(n)``). `weights` float32 [V] >= 0, not all zero: the
    unnormalised law of the token after them. `relaxed`: positions **in path** that a lossless rule would have refused."""

    path: list[int]
    weights: Tensor
    relaxed: tuple[int, ...] = ()


class Chance(NamedTuple):
    """The rejection test of one draft token x: the uniform `u`, the target's warped `p` (x) and the `q` (x) that x was drawn from (1 where it
    was chosen without chance). Accepted iff `passed`."""

    u: float
    p: float
    q: float

    @property
    def passed(self) -> bool:
        return self.u * self.q < self.p  # strictly, in float64: a token with p = 0 is never taken


class Figures(NamedTuple):
    """What one law says of one token: its probability, the two largest of the law, and the law's entropy in nats."""

    prob: float
    top1: float
    top2: float
    entropy: float


class Decision(NamedTuple):
    """The half of a `Verdict` that needs no rows: the first `accepted` tokens of a chain stay, `relaxed` as there, and the rule's next state."""

    accepted: int
    relaxed: tuple[int, ...]
    state: Any


class Feed(NamedTuple):
    """`tokens` int64 [n] for `slot`, to be read after what its cache holds. `parents` int64 [n] over the fed tokens (-1 = after the last
    cached entry); None = a chain. `want`: of how many of the last fed tokens logits are needed. `source`: the encoder's
    input, read with the first feed of an empty slot: int64 [S], or features without batch dimension; None for models without encoder."""

    slot: int
    tokens: Tensor
    want: int
    parents: Tensor | None = None
    source: Tensor | None = None


class Rows(NamedTuple):
    """What a forward gave for one feed: raw `logits` [want, V] and `hidden` {tap: [n, H]} for every fed token.
    Valid until the next forward of that backend: who keeps a row clones it."""

    logits: Tensor
    hidden: dict[int, Tensor]


class Outcome(NamedTuple):
    """What `draftwise.rounds.verify` found for one sequence. `path` and `relaxed` as in Verdict, `last` the token after the path
    (None: a prefill chunk, nothing was judged). `state`: the acceptance rule's next state. `laws` [len(path)+1, V]: the target's laws
    of the emitted tokens, if asked for. `logprobs`: of the emitted tokens, if asked for. `rows`: of the forward. `fed`: tokens fed."""

    path: list[int]
    last: int | None
    relaxed: tuple[int, ...]
    state: Any
    rows: Rows
    laws: Tensor | None = None
    logprobs: tuple[float, ...] = ()
    fed: int = 0


class Round(NamedTuple):
    """The record of one round of one sequence, plain data. `drafted` nodes, `depth` levels (chain: the same), `accepted` and `relaxed` of
    them, `emitted` tokens (bonus or correction included). `batch` sequences and `rows` fed tokens of the whole forward. Seconds of the
    whole step: `draft_s`, `verify_s`. `finished`: a stop id or a limit ended the text in this round. `steps` as in Draft for a chain; of
    a tree, one a level: those of the accepted path, and of the first token that was tried after it. `origin`: who drafted. `lag`: tokens of the
    text that the drafter had not read when it was asked. `usual_s`: what a step of so many levels and rows usually takes here, nan where that is
    not known."""

    drafted: int
    depth: int
    accepted: int
    relaxed: int
    emitted: int
    batch: int
    rows: int
    draft_s: float
    verify_s: float
    finished: bool = False
    steps: tuple[DraftStep, ...] = ()
    origin: str = "none"
    lag: int = 0
    usual_s: float = math.nan


class Now(NamedTuple):
    """What a length policy may know of the moment. `batch` sequences in this step, `context` tokens so far, `room` draft tokens that can
    still be emitted, `lag` tokens the drafter has not read yet, `draft_s` seconds of one draft step (nan = unmeasured), `verify_s`
    pairs (rows, seconds) measured by the engine."""

    batch: int
    context: int
    room: int
    lag: int
    draft_s: float = math.nan
    verify_s: tuple[tuple[int, float], ...] = ()


class Chunk(NamedTuple):
    """New tokens of one sequence: `origins` and (if asked for) `logprobs` one per token; `finish_reason` 'stop' or 'length' with the last."""

    id: int
    tokens: tuple[int, ...]
    origins: tuple[Origin, ...]
    finish_reason: Literal["stop", "length"] | None
    round: Round
    logprobs: tuple[float, ...] = ()
