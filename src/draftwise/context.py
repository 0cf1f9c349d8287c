"""What a drafter may be built from."""

from __future__ import annotations

from typing import Any, NamedTuple


class Context(NamedTuple):
    """What a drafter may be built from. `target` and `draft` are backends; `vocab_size` is the width of the target's rows. Where there are several
    drafts, `drafts` has all of them, largest first and `draft` at its head, and `names` what they were called."""

    target: Any
    draft: Any | None
    vocab_size: int
    drafts: tuple[Any, ...] = ()
    names: tuple[str, ...] = ()

    def helper(self, model: int | str = 1) -> Any | None:
        """A draft by its place (1 is the first) or its name; None where there is none at all. Raises ValueError for one that is not there."""
        every = (self.drafts or (self.draft,)) if self.draft is not None else ()
        if not every:
            return None
        places = {str(i): draft for i, draft in enumerate(every, 1)} | dict(zip(self.names, every, strict=False))
        if str(model) not in places:
            there = ", ".join(f"{i} ({name})" for i, name in enumerate(self.names, 1)) or f"1 to {len(every)}"
            raise ValueError(f"there is no draft {model!r}: the drafts are {there}, in the order they were named")
        return places[str(model)]
