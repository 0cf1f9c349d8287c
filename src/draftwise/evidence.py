"""What an acceptance rule looks at, read from the rows of one judgement: `Live`, the `Evidence` of decoding. Of a tree, `unfolded` puts the
tokens side by side, each with its own row.

Nothing is computed before it is asked for, and then for all tokens of the chain at once, since a device is waited for once. Two things are
dearer than that: the distance of two rows is computed only up to the first token that fails the test asked before (those after it may never be
judged), and whether a token is the target's own draw is found without inverting its law.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from draftwise import probs, wide
from draftwise.trees import depths, judges
from draftwise.types import Chance, Draft, DraftStep, Figures, Target, Uniforms

TOP = 8  # entries of `top`


class Live:
    """The evidence of one chain: `draft` of N tokens, what the `target` said of it, and the randomness `u` of the judgement."""

    def __init__(self, target: Target, draft: Draft, u: Uniforms) -> None:
        self.target, self.draft, self.u = target, draft, u
        self._tokens: list[int] = draft.tokens.tolist()
        self._chances: list[Chance] = []
        self._matches: list[bool] = []
        self._allowed: list[bool] = []
        self._laws: list[Figures] = []
        self._raws: list[Figures] = []
        self._tops: list[list[tuple[int, float]]] = []
        self._distances: dict[int, float] = {}
        self._raced: list[int] = []

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def vocab(self) -> int:
        return self.target.logits.shape[-1]

    def token(self, i: int) -> int:
        return self._tokens[i]

    def chance(self, i: int) -> Chance:
        if not self._chances:
            p = probs.picked(self.target.p, self.draft.tokens)
            q = torch.ones_like(p) if self.draft.probs is None else probs.picked(self.draft.probs, self.draft.tokens).to(p.device)
            self._chances = [Chance(*row) for row in zip(self.u.accept.tolist(), *torch.stack([p, q]).tolist(), strict=True)]
        return self._chances[i]

    def match(self, i: int) -> bool:
        if not self._matches:
            self._matches = self._find_raced() if self.u.race is not None else self._find_drawn()
        return self._matches[i]

    def allowed(self, i: int) -> bool:
        self._allowed = self._allowed or self.target.allowed.tolist()
        return self._allowed[i]

    def law(self, i: int) -> Figures:
        self._laws = self._laws or self._find_laws()
        return self._laws[i]

    def raw(self, i: int) -> Figures:
        if not self._raws:
            logits = self.target.logits[: len(self)]
            self._raws = [Figures(*row) for row in probs.confidence(logits, self.draft.tokens.to(logits.device)).tolist()]
        return self._raws[i]

    def likelihood(self, i: int, token: int) -> float:
        if token == self._tokens[i]:
            return self.raw(i).prob
        known = dict(self.top(i)).get(token)  # as a trace knows it
        return float(self.target.logits[i].float().softmax(-1)[token]) if known is None else known

    def top(self, i: int) -> Sequence[tuple[int, float]]:
        self._tops = self._tops or tops(self.target.logits[: len(self)], [self.raw(j).top1 for j in range(len(self))])
        return self._tops[i]

    def distance(self, i: int) -> float:
        if i not in self._distances:
            if self.draft.logits is None:
                raise ValueError(f"a rule that compares rows has none from the drafter {self.draft.origin!r}: use a draft model, or another rule")
            end = self._judged(i)
            rows = self.draft.logits[i:end].to(self.target.logits.device)
            self._distances.update(enumerate(probs.js_distance(self.target.logits[i:end], rows).tolist(), i))
        return self._distances[i]

    def step(self, i: int) -> DraftStep:
        if not self.draft.steps:
            raise ValueError(f"the drafter {self.draft.origin!r} has no rows to tell of: use a draft model, or another rule")
        return self.draft.steps[i]

    def choice(self, i: int) -> int:
        """What the target draws itself at row i, for i from 0 to N."""
        if self.u.race is not None:
            self._find_raced()
            return self._raced[i]
        return choose(self.target, self.u, i, i)

    def _judged(self, start: int) -> int:
        """Where the tokens end that a rule which went on to `start` may still judge: after the first that fails."""
        passed = self._matches or [chance.passed for chance in self._chances]
        return next((i + 1 for i in range(start, len(passed)) if not passed[i]), len(self) if passed else start + 1)

    def _find_raced(self) -> list[bool]:
        if not self._raced and self.u.race is not None:
            self._raced = (self.target.p.double().log() + self.u.race.to(self.target.p.device)).argmax(-1).tolist()
        return [token == chosen for token, chosen in zip(self._tokens, self._raced, strict=False)]

    def _find_drawn(self) -> list[bool]:
        """Whether each token is what inversion at the target's own uniform gives. A token that has all of the mass, or none, needs no look at
        its row. For the others a sum up to the token stands for the cumulative sum of the row, at a tenth of the cost."""
        p = self.target.p
        masses: list[float] = probs.picked(p, self.draft.tokens).tolist()
        end = masses.index(0.0) if 0.0 in masses else len(masses)  # above temperature 0 nothing goes on after a token without mass
        drawn = _drawn(p[:end], self._tokens[:end], masses, self.u.sample)
        return [*drawn, *(mass == 1 for mass in masses[end:])]

    def _find_laws(self) -> list[Figures]:
        p = self.target.p[: len(self)]
        picked = probs.picked(p, self.draft.tokens)
        top = wide.largest(p, min(2, p.shape[-1]))[0]
        second = top[:, 1] if top.shape[-1] > 1 else torch.zeros_like(picked)
        rows = zip(*torch.stack([picked, top[:, 0], second]).tolist(), strict=True)
        found = [Figures(prob, top1, top2, 0.0) for prob, top1, top2 in rows]
        if all(law.top1 == 1 for law in found):  # one-hot, as at temperature 0
            return found
        entropies = torch.special.entr(p).sum(-1).tolist()
        return [law._replace(entropy=entropy) for law, entropy in zip(found, entropies, strict=True)]


def choose(target: Target, u: Uniforms, row: int, depth: int) -> int:
    """What the target draws itself from a row of its laws, for the output position `depth` after the committed text."""
    p = target.p[row]
    if u.race is not None:
        return int((p.double().log() + u.race[depth].to(p.device)).argmax())
    return int(probs.sample(p[None], u.sample[depth : depth + 1])[0])


def unfolded(target: Target, draft: Draft, u: Uniforms) -> Live:
    """The evidence of a tree's tokens: of each the row that judges it, and its depth's numbers. `chance` is that of the token alone, as if it had
    no earlier siblings."""
    n = len(draft.tokens)
    rows = judges(draft.parents, n).to(target.p.device)
    at = torch.arange(n) if draft.parents is None else depths(draft.parents)
    spread = Uniforms(u.accept, u.sample[at], None if u.race is None else u.race[at])
    return Live(Target(target.p[rows], target.logits[rows], target.allowed), draft._replace(parents=None), spread)


def tops(logits: Tensor, top1: Sequence[float]) -> list[list[tuple[int, float]]]:
    """The largest entries of the raw softmaxes of `logits` [n, V], whose largest probabilities are `top1`: float32 values."""
    values, ids = wide.largest(logits, min(TOP, logits.shape[-1]))
    found = (values.float() - values[:, :1].float()).exp() * torch.tensor(top1, device=values.device)[:, None]
    return [list(zip(row, some, strict=True)) for row, some in zip(ids.tolist(), found.tolist(), strict=True)]


def _drawn(p: Tensor, tokens: Sequence[int], masses: Sequence[float], u: Tensor) -> list[bool]:
    """Whether inversion of each row of `p` [n, V] at `u` gives its token, whose mass is known."""
    if all(mass == 1 for mass in masses[: len(tokens)]):
        return [True] * len(tokens)
    sides = [[row[:token].sum(dtype=torch.float64), row[token + 1 :].sum(dtype=torch.float64)] for row, token in zip(p, tokens, strict=True)]
    found = zip(torch.stack([side for pair in sides for side in pair]).view(-1, 2).tolist(), masses, u.tolist(), strict=False)
    return [mass == 1 or low <= aim * (low + mass + high) < low + mass for (low, high), mass, aim in found]
