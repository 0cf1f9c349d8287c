"""The four seams. Every published method replaces one of these parts; the engine knows nothing else.

`Length` and `Accept` are frozen dataclasses of hyperparameters. What changes lives in a small state that the sequence carries, so the
same object serves any number of sequences and engines. States are int, float, or NamedTuples of them: never a tensor, always JSON-safe.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from draftwise.types import Chance, Decision, Draft, DraftStep, Feed, Figures, Now, Outcome, Round, Rows, Target, Text, Uniforms, Verdict

Relax = Callable[[int], bool]
"""Asked with the draft index before every acceptance that a lossless rule would refuse; False forbids it. A budget is such a callable."""


def always(_: int) -> bool:
    """The relax callable of a request without a budget."""
    return True


@runtime_checkable
class Length(Protocol):
    """How many tokens to draft. A stop rule may look at a drafted token only if that token is still submitted: hence `more` is asked
    after the token is kept, and a policy never drops one.

    Two more class attributes may be there. ``rowless = True``: a policy with `per_token` that also does without `more`, for drafters without rows.
    ``rests = True``: `update` is called for rounds of 0 drafted tokens as well. And three methods. By two of them `best-of` weighs a drafter:
    ``expected(state, steps)``, the tokens that a round with such a draft is expected to give, and ``foreseen(state, n)``, that a round of n draft
    tokens is before any is drafted. ``beside(state, now, steps)`` answers `Ask.beside`: which second choices are worth a row of the pass."""

    per_token: ClassVar[bool]
    """False = `more` is never asked: the draft loop then runs without a host sync."""

    def init(self, last: Any | None) -> Any:
        """The state of a new sequence. `last`: the state of the sequence that finished last under this policy."""
        ...

    def budget(self, state: Any, now: Now) -> int:
        """Levels (chain: tokens) to draft at most, >= 0; 0 = decode plainly. The engine caps it by ``now.room``."""
        ...

    def more(self, state: Any, now: Now, steps: Sequence[DraftStep]) -> bool:
        """`steps`: this round's tokens so far, newest last, all of which stay. Draft another one?"""
        ...

    def update(self, state: Any, round: Round) -> Any:
        """The state after a round. Not called for rounds of 0 drafted tokens or for the round that ended the text."""
        ...


@runtime_checkable
class Accept(Protocol):
    """Which drafted tokens stay, and the law of the token after them."""

    lossless: ClassVar[bool]
    trees: ClassVar[bool]
    """Understands ``draft.parents``."""
    wants_logits: ClassVar[bool]
    """Needs the raw logits of the draft."""
    coupled: ClassVar[bool]
    """Target and drafter draw with the same Gumbel noise (``u.race``)."""

    def init(self, last: Any | None) -> Any:
        """The state of a new sequence. `last`: the state of the sequence that finished last under this rule."""
        ...

    def judge(self, target: Target, draft: Draft, u: Uniforms, state: Any, relax: Relax = always) -> tuple[Verdict, Any]:
        """The verdict on one sequence's draft (N may be 0) and the next state. Reads its arguments, writes none. See also `Decides`."""
        ...


@runtime_checkable
class Evidence(Protocol):
    """What rules look at of the N tokens x of a drafted chain, as plain floats; nothing is computed before it is asked for. While decoding it is
    read from the rows (`draftwise.evidence.Live`), in a replay from a recorded trace. A rule asks for token i only if its verdict hangs on
    it: a replay knows no more than what was recorded."""

    def __len__(self) -> int:
        """N."""
        ...

    @property
    def vocab(self) -> int:
        """V."""
        ...

    def token(self, i: int) -> int:
        """x itself."""
        ...

    def chance(self, i: int) -> Chance:
        """The rejection test of x."""
        ...

    def match(self, i: int) -> bool:
        """Whether x is what the target draws itself, with its own uniform of that position or, under a coupled rule, with the shared noise. At
        temperature 0: whether x is the argmax."""
        ...

    def choice(self, i: int) -> int:
        """What the target draws itself in place of x: x where it matches."""
        ...

    def allowed(self, i: int) -> bool:
        """Whether x survives the request's processors and truncation."""
        ...

    def law(self, i: int) -> Figures:
        """The target's **warped** law at x: what plain decoding samples from."""
        ...

    def raw(self, i: int) -> Figures:
        """The target's **raw** softmax at x."""
        ...

    def likelihood(self, i: int, token: int) -> float:
        """The probability of any token in the target's **raw** softmax at x. A trace knows x and the entries of `top`."""
        ...

    def top(self, i: int) -> Sequence[tuple[int, float]]:
        """The largest entries of the target's raw softmax: at most 8 pairs (id, probability), falling."""
        ...

    def distance(self, i: int) -> float:
        """Jensen-Shannon distance of the raw softmaxes of draft and target, in [0, 1]. Only for rules with `wants_logits`."""
        ...

    def step(self, i: int) -> DraftStep:
        """What the drafter knew of x. Only of drafters with rows."""
        ...


@runtime_checkable
class Decides(Protocol):
    """An `Accept` whose verdict needs no rows. `judge` is then this decision and the law of the next token, and a recorded trace can be replayed
    under the rule. Optional: a rule without it decodes as well, and replays say that they cannot answer for it."""

    def decide(self, evidence: Evidence, state: Any, relax: Relax = always) -> Decision:
        """How many tokens of a chain stay, by the very same code that `judge` runs. Reads its arguments, writes none."""
        ...


class Ask(NamedTuple):
    """A request to draft at most `n` tokens for `text`, or of a tree `n` levels. `more`: asked after each kept token, or once a level, with the
    steps so far (of a tree one a level, that of the token its drafter thinks likeliest to be reached); None = never asked.
    `logits`: hand up the raw rows. `most`: a drafter whose tokens come several at a time may go beyond `n` up to this many, rather than throw
    them away, and asks `more` once for each time they come. `beside`: asked once a chain is drafted, with its steps: the levels at which the
    drafter's second choice is wanted as a leaf beside the first. A drafter may do without; None = chains only, or tokens are drawn."""

    text: Text
    n: int
    more: Callable[[Sequence[DraftStep]], bool] | None = None
    logits: bool = False
    most: int = 0
    beside: Callable[[Sequence[DraftStep]], Sequence[int]] | None = None


@runtime_checkable
class Drafter(Protocol):
    """Proposes tokens. Never sees a `Length`."""

    taps: tuple[int, ...]
    """Hidden layers of the target it needs; -1 = after the final norm; () = none."""
    has_logits: bool
    """Can hand up raw rows; else rules that want them are refused when a request is added."""
    learns_rows: bool
    """Needs the target's rows in `observe`."""
    # Optional: ``trees: bool``, whether its drafts may have `parents`; without the attribute it drafts chains. Rules and targets that know
    # chains only are refused with it when a request is added. ``has_steps: bool``, whether it gives steps (by default where it has logits).

    def lag(self, text: Text) -> int:
        """Tokens of the text it has not read yet."""
        ...

    def propose(self, asks: Sequence[Ask]) -> list[Draft]:
        """One draft for each ask, in order, of at most ``ask.n`` tokens, or levels (or ``ask.most``, see there)."""
        ...

    def observe(self, text: Text, draft: Draft, outcome: Outcome) -> None:
        """Called after every forward of the target, with the text that now holds the outcome; prefill chunks too (``outcome.last`` None)."""
        ...

    def free(self, text: Text) -> None:
        """The sequence is over."""
        ...


def has_steps(drafter: Drafter) -> bool:
    """Whether a length policy can look at this drafter's tokens one by one."""
    return bool(getattr(drafter, "has_steps", drafter.has_logits))


def stops(length: Length, drafter: Drafter) -> bool:
    """Whether `Length.more` is asked of this drafter's tokens."""
    return length.per_token and has_steps(drafter)


def needs_steps(length: Length, drafter: Drafter) -> bool:
    """Whether the policy cannot do without steps that this drafter does not give."""
    return length.per_token and not has_steps(drafter) and not getattr(length, "rowless", False)


@runtime_checkable
class Backend(Protocol):
    """A causal language model with a rewindable cache per slot (slots are small ints chosen by the caller; unknown slots are empty).

    The cache of a slot is always a proper prefix of its sequence, and the model is always fed ``tokens[length(slot):]``."""

    vocab_size: int
    max_length: int
    """Longest sequence the model can hold; of a tree its longest path counts."""
    # Optional: ``trees: bool``, False for a model that can read no `Feed.parents` that branch; without the attribute it can. ``most_slots: int``,
    # how many slots it has; without it as many as are asked for. ``precision: str``, of its weights in words, where the dtype does not say it.

    def length(self, slot: int) -> int:
        """Entries the slot's cache holds."""
        ...

    def forward(self, feeds: Sequence[Feed]) -> list[Rows]:
        """Reads all feeds (distinct slots) in one pass and appends their tokens to the caches."""
        ...

    def keep(self, slot: int, length: int, path: Sequence[int] = ()) -> int:
        """Keeps the first `length` entries, then those at absolute indices `path` (ascending, >= length). May keep less, never more.
        Returns what is left."""
        ...

    def free(self, slot: int) -> None:
        """Empties the slot."""
        ...


@runtime_checkable
class Encodes(Protocol):
    """A `Backend` with an encoder, as a decoder's text is the sequence it decodes. It reads ``Feed.source`` with the first feed of an empty slot and
    no other, and holds what the encoder made of it until the slot is empty again. Backends without it never get a source."""

    reads: str
    """What the encoder takes: 'input_ids', or the name of its features. A draft with an encoder must read what its target reads."""
    # Optional: ``shared: bool``, False where the encoder's ids are another vocabulary than the decoder's; without the attribute they are one.

    def refusal(self, source: Tensor | None) -> str:
        """Why a source cannot be read (None: there is none); '' if it can."""
        ...
