"""What `draftwise replay` answers: several methods over several traces, and why some cannot be answered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from draftwise import catalog
from draftwise.bench.replay import Grade, Played, play
from draftwise.bench.replay_costs import Costs
from draftwise.bench.trace import Trace
from draftwise.protocols import Accept, Length
from draftwise.spec import parse
from draftwise.stats import Summary, summarize

_ALIKE = ("target", "draft", "precision", "machine")  # what traces that are replayed together must agree in


class Policy(NamedTuple):
    """A method without its models. `drafter`: who must have drafted; 'auto' = anybody, 'none' = it drafts nothing."""

    name: str
    length: Length
    accept: Accept
    drafter: str = "auto"


class Answer(NamedTuple):
    """One method over the `traces` that can answer for it. `summary`: seconds, and so tokens per second, are estimates from the measured costs of
    draft steps and target passes. `exact`, `drawn`, `estimated`: rounds by grade. `left`: per trace, the new tokens before the first round
    whose verdict is an estimate, None where there is none. `measured`: share of rounds as wide as passes that were measured. `refused`:
    why no trace can answer, '' where one can."""

    name: str
    traces: int
    summary: Summary | None = None
    exact: int = 0
    drawn: int = 0
    estimated: int = 0
    left: tuple[int | None, ...] = ()
    measured: float = 0.0
    refused: str = ""


def policy(spec: str, length: str | None = None, accept: str | None = None) -> Policy:
    """The policies of a method spec, perhaps with a part replaced. Raises ValueError for names and options there are not."""
    made = catalog.method(spec, None, length, accept, drafter=object())  # any object: a drafter needs the models
    parts = catalog.entry("method", parse(spec).name).parts
    name = ", ".join([spec, *(f"{kind} {part}" for kind, part in (("length", length), ("accept", accept)) if part)])
    drafter = parse(parts[2]).name if parts else "auto"
    return Policy(name, made.length, made.accept, "auto" if drafter == "none" and length else drafter)


def replay(traces: Sequence[Trace], policies: Sequence[Policy]) -> list[Answer]:
    """One answer per policy, in order. Raises ValueError for no traces, or for traces of different pairs or machines."""
    if not traces:
        raise ValueError("there is no trace to replay")
    for key in _ALIKE:
        found = {str(trace.header["about"].get(key)): trace.name for trace in traces}
        if len(found) > 1:
            (one, first), (other, second), *_ = found.items()
            raise ValueError(f"these traces differ in their {key}, so that no costs are common: {one} in {first}, {other} in {second}")
    costs = Costs(traces)
    return [_answer(traces, some, costs) for some in policies]


def _answer(traces: Sequence[Trace], some: Policy, costs: Costs) -> Answer:
    played: list[Played] = []
    reasons = []
    for trace in traces:
        origin = trace.header["origin"]
        if some.drafter not in ("auto", "none", origin):
            reasons.append(f"its drafter is {some.drafter}, and " + ("nothing was drafted" if origin == "none" else f"{origin} drafted this trace"))
            continue
        try:
            played.append(play(trace, some.length, some.accept, costs))
        except ValueError as error:
            reasons.append(str(error))
    if not played:
        return Answer(some.name, 0, refused=reasons[0])
    rounds = [round for one in played for round in one.rounds]
    grades = [grade for one in played for grade in one.grades]
    summary = summarize(rounds, sum(round.draft_s + round.verify_s for round in rounds))
    exact, drawn, estimated = (sum(grade is wanted for grade in grades) for wanted in Grade)
    measured = sum(costs.measured(round.rows) for round in rounds) / len(rounds) if rounds else 0.0
    return Answer(some.name, len(played), summary, exact, drawn, estimated, tuple(one.left for one in played), measured)


def to_json(answer: Answer) -> dict[str, Any]:
    """An answer as JSON holds it."""
    return answer._asdict() | {"summary": answer.summary._asdict() if answer.summary else None}
