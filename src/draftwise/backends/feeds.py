"""What every backend asks of the feeds it is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from draftwise import trees
from draftwise.protocols import Encodes
from draftwise.types import Feed

_LAG = 8  # committed tokens read again in one pass with a draft; with more, they get a pass of their own, after which a state can be remembered


def check(feeds: Sequence[Feed], backend: Any) -> None:
    """Raises ValueError, with what was given and what is possible, for feeds no forward can read."""
    if len({feed.slot for feed in feeds}) < len(feeds):
        raise ValueError(f"every slot can be fed once in a forward, got slots {[feed.slot for feed in feeds]}")
    for feed in feeds:
        n, past = len(feed.tokens), backend.length(feed.slot)
        if not 0 <= feed.want <= n:
            raise ValueError(f"slot {feed.slot}: logits of {feed.want} of {n} fed tokens cannot be had")
        if feed.parents is not None and len(feed.parents) != n:
            raise ValueError(f"slot {feed.slot}: {len(feed.parents)} parents for {n} tokens")
        if past + (long := trees.levels(feed.parents, n)) > backend.max_length:
            raise ValueError(f"slot {feed.slot}: {past} cached and {long} new tokens are more than the {backend.max_length} this model can read")
        if n and not feed.tokens.is_cuda and not 0 <= int(feed.tokens.min()) <= int(feed.tokens.max()) < backend.vocab_size:
            raise ValueError(f"slot {feed.slot}: token ids must be in [0, {backend.vocab_size}), got {feed.tokens.tolist()}")
        if feed.source is not None and not isinstance(backend, Encodes):
            raise ValueError("an encoder input was given to a model without encoder")


def committed(feed: Feed) -> int:
    """How many of the fed tokens stay whatever is judged: what follows the first wanted row is a draft."""
    return len(feed.tokens) - max(feed.want - 1, 0)


def cuts_of(feed: Feed) -> list[int]:
    """Where passes over a feed begin and end, for models that keep a running state."""
    n, sure = len(feed.tokens), committed(feed)
    return [0, sure, n] if _LAG < sure < n else [0, n] if n else [0]


def risky(feed: Feed, end: int) -> bool:
    """Whether a pass over the feed's tokens up to `end` may have to be taken back: it reads drafts, or one token, which may be a drafter's own."""
    return bool(feed.want) and end > committed(feed) - (feed.want == 1)
