"""What the bench writes and reads: problems, turns and rows, as plain data that JSON can hold.

A row is one problem answered by one variant, or one of several samples of that. Seconds are of wall time from the moment the prompt's ids are
handed over.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

ORIGINS = {"drafted": "d", "relaxed": "r", "target": "t"}


class Problem(NamedTuple):
    """One problem of a task. `id` is unique within the task and stable over versions of this package; `group` is what reports average over (a
    category, or the task's name). `turns`: what the user says, one after the other. `reference`: whatever the task's scorer needs."""

    task: str
    version: int
    id: str
    group: str
    turns: tuple[str, ...]
    reference: Any = None


class Turn(NamedTuple):
    """One answer. `tokens`: ids, a stop id included where one ended the text. `text`: decoded, without special tokens. `arrivals`: pairs
    (seconds, tokens) in order, one for each time new tokens were handed over; empty where the engine cannot tell. `finish_reason`: 'stop'
    or 'length'. `origins`: one letter of ORIGINS per token, '' where the engine cannot tell. `rounds`: one `Pass` per target pass;
    an engine that tells only their sums gives `accepted` and `drafted` tokens and target `passes` instead."""

    tokens: tuple[int, ...]
    text: str
    seconds: float
    prompt_tokens: int = 0
    arrivals: tuple[tuple[float, int], ...] = ()
    finish_reason: str = ""
    origins: str = ""
    rounds: tuple[Pass, ...] = ()
    accepted: int | None = None
    drafted: int | None = None
    passes: int | None = None

    def total(self, name: str) -> int | None:
        """The 'accepted' or 'drafted' tokens, or the 'passes', of the whole answer; None where the engine cannot tell."""
        if not self.rounds:
            found: int | None = getattr(self, name)
            return found
        return sum(1 if name == "passes" else getattr(some, name) for some in self.rounds if some.emitted or name != "passes")


class Pass(NamedTuple):
    """What remains of a `draftwise.types.Round`: counts, and the seconds of the whole step."""

    drafted: int
    depth: int
    accepted: int
    relaxed: int
    emitted: int
    draft_s: float
    verify_s: float


class Row(NamedTuple):
    """One line of rows.jsonl. `variant` is unique in a run ('plain', 'adasd', 'transformers-assisted', 'llamacpp-draft'); `engine` is who ran
    it ('draftwise', 'transformers', 'llamacpp', ...), `precision` in what ('bf16', 'Q4_K_M', 'int4'). `correct`: None where the task has
    no right answer. `machine`: cpu, cores, threads, system, python and package versions. `command`: what was typed. `sample`: which of the answers
    to a problem that was asked several times, from 0; None where each problem is asked once."""

    task: str
    version: int
    id: str
    group: str
    variant: str
    engine: str
    precision: str
    turns: tuple[Turn, ...]
    correct: bool | None
    seed: int
    machine: dict[str, Any]
    command: str
    sample: int | None = None

    @property
    def key(self) -> Key:
        """What a run may hold once."""
        return key(self.task, self.id, self.variant, self.sample)


Key = tuple[str | int, ...]


def key(task: str, id: str, variant: str, sample: int | None = None) -> Key:
    """(task, id, variant), and the sample where there are several."""
    return (task, id, variant) if sample is None else (task, id, variant, sample)


def to_json(row: Row) -> dict[str, Any]:
    """The row as JSON holds it, names kept: {..., "turns": [{"tokens": [...], ..., "rounds": [[drafted, ...], ...]}]}; without `sample` if None."""
    found = row._asdict() | {"turns": [turn._asdict() for turn in row.turns]}
    if row.sample is None:
        del found["sample"]
    return found


def from_json(data: dict[str, Any]) -> Row:
    """The row of `to_json`'s dictionary, after a journey through JSON. Raises ValueError where a field is missing or unknown."""
    try:
        return Row(**(data | {"turns": tuple(_turn(turn) for turn in data["turns"])}))
    except (KeyError, TypeError) as error:
        raise ValueError(f"no row of this bench: {error}") from None


def _turn(data: dict[str, Any]) -> Turn:
    lists: dict[str, Sequence[Any]] = {"arrivals": [], "rounds": []} | {key: data[key] for key in ("arrivals", "rounds") if key in data}
    fixed = {"tokens": tuple(data["tokens"]), "arrivals": tuple((float(s), int(n)) for s, n in lists["arrivals"])}
    return Turn(**(data | fixed | {"rounds": tuple(Pass(*some) for some in lists["rounds"])}))
