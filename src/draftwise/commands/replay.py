"""`draftwise replay`: what other methods would have done with recorded answers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from draftwise.commands.options import AcceptOption, JsonOption, LengthOption, waiting

if TYPE_CHECKING:
    from draftwise.bench.replayed import Answer, Policy
    from draftwise.bench.trace import Trace

_NOTE = (
    "exact: the rounds of a real run. drawn: a valid draw of the same law (temperature above 0). The rest are estimates, and so are all tokens/s: "
    "from the measured costs of draft steps and target passes. left at: new tokens before the first estimated verdict."
)


def replay(
    traces: Annotated[list[str], typer.Argument(metavar="TRACE...", help="Traces (*.npz), or folders of them.")],
    methods: Annotated[str | None, typer.Option("--methods", help="Methods, with commas between them; by default all presets.")] = None,
    length: LengthOption = None,
    accept: AcceptOption = None,
    as_json: JsonOption = False,
) -> None:
    """Evaluate methods on recorded answers, without a model, and say which of the figures are exact."""
    from draftwise.bench import replayed, trace

    found = trace.load_all(traces)
    with waiting(f"replaying {len(found)} traces"):
        answers = replayed.replay(found, policies(methods, length, accept))
    if as_json:
        typer.echo(json.dumps({"traces": [described(t) for t in found], "answers": [replayed.to_json(a) for a in answers]}, indent=2))
        return
    show(found, answers)


def policies(methods: str | None, length: str | None, accept: str | None) -> list[Policy]:
    """The named methods; without names the presets, or one preset where a part of it is given."""
    from draftwise import catalog
    from draftwise.bench.plan import split
    from draftwise.bench.replayed import policy

    names = split(methods) if methods else ["fixed"] if length or accept else catalog.names("method")
    return [policy(name, length, accept) for name in names]


def described(trace: Trace) -> dict[str, Any]:
    """What a trace says of itself."""
    kept = ("prompt", "finish_reason", "sampling", "length", "accept", "drafter", "origin", "about")
    return {"name": trace.name, "tokens": len(trace.columns["emitted_tokens"])} | {key: trace.header[key] for key in kept}


def show(traces: list[Trace], answers: list[Answer]) -> None:
    """The table, and under it what cannot be answered."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200  # a table in a pipe is for grep: no line is folded
    tokens = sum(len(trace.columns["emitted_tokens"]) for trace in traces)
    recorded = sorted({f"{trace.header['length']} and {trace.header['accept']}" for trace in traces})
    console.print(escape(f"{len(traces)} {'trace' if len(traces) == 1 else 'traces'}, {tokens} tokens, recorded with {', '.join(recorded)}"))
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("method", "tokens/s", "tau", "acceptance", "drafted", "relaxed", "exact", "drawn", "left at"):
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True, style="green" if name == "method" else None)
    for answer in answers:
        if answer.summary:
            table.add_row(escape(answer.name), *_cells(answer))
    console.print(table)
    for answer in answers:
        if answer.refused:
            console.print(f"[yellow]{escape(answer.name)}[/yellow] cannot be answered: {escape(answer.refused)}")
    partly = [a for a in answers if a.summary and a.traces < len(traces)]
    for answer in partly:
        console.print(f"{escape(answer.name)} is answered by {answer.traces} of {len(traces)} traces")
    guessed = [answer.name for answer in answers if answer.summary and answer.measured < 0.5]
    if guessed:
        console.print(escape(f"tokens/s of {', '.join(guessed)} rest on passes of widths that were not measured"), style="yellow")
    console.print(_NOTE, style="dim")


def _cells(answer: Answer) -> list[str]:
    s = answer.summary
    if s is None:
        return []
    rounds = answer.exact + answer.drawn + answer.estimated
    left = [place for place in answer.left if place is not None]
    shares = [f"{count / rounds:.0%}" if rounds else "" for count in (answer.exact, answer.drawn)]
    return [
        f"~{s.tokens_per_second:.1f}", f"{s.tau:.2f}", f"{s.acceptance_rate:.0%}" if s.drafted else "-", f"{s.drafted_per_round:.1f}",
        f"{s.relaxed_share:.1%}", *shares, str(min(left)) if left else "-",
    ]  # fmt: skip
