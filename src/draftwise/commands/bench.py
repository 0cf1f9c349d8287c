"""`draftwise bench`: every method and every peer on the same prompts in one run; reports and comparisons of the results."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from draftwise.commands import options, show
from draftwise.commands.errors import INTERRUPTED, complain

if TYPE_CHECKING:
    from draftwise.bench.session import Outcome

INCOMPLETE = 1
EXIT_CODES = (
    "Exit codes: 0 done, 1 some rows are missing because an engine failed (the same command tries them again), 2 bad input, "
    "130 interrupted by Ctrl-C (the same command goes on)."
)
_WORK, _MODELS, _SAMPLING, _OUTPUT = "What to run", "Models", "Sampling", "Output"

app = typer.Typer(no_args_is_help=True, add_completion=False, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})


@app.callback(invoke_without_command=True)
def bench(
    ctx: typer.Context,
    methods: Annotated[
        str, typer.Option(help="Methods with options, separated by commas. Default: all presets that run. plain is always in.", rich_help_panel=_WORK)
    ] = "",
    tasks: Annotated[
        str, typer.Option(help="Tasks, separated by commas: specbench, humaneval, gsm8k, or a .jsonl file of your prompts.", rich_help_panel=_WORK)
    ] = "",
    data: Annotated[Path | None, typer.Option(help="Folder with the tasks' files.", rich_help_panel=_WORK)] = None,
    limit: Annotated[
        str, typer.Option(help="Problems of each task (of each group of Spec-Bench): 6, or specbench=2,6. Default: all.", rich_help_panel=_WORK)
    ] = "",
    max_tokens: Annotated[
        str, typer.Option("--max-tokens", "-n", help="Most new tokens: 128, or humaneval=256,128. Default: the task's own.", rich_help_panel=_WORK)
    ] = "",
    peer: Annotated[
        list[str] | None, typer.Option(help="Another engine, with options: vllm:python=PATH. May be repeated.", rich_help_panel=_WORK)
    ] = None,
    peers: Annotated[str, typer.Option(help="Several engines, separated by commas.", rich_help_panel=_WORK)] = "",
    samples: Annotated[
        int, typer.Option(help="How often each problem is asked, with seeds SEED, SEED+1, ...; needs a temperature.", rich_help_panel=_WORK)
    ] = 1,
    block: Annotated[
        int, typer.Option(min=1, help="Problems in a row for each engine's turn; more swap engines less often.", rich_help_panel=_WORK)
    ] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="For every engine. Default: the cores.", rich_help_panel=_WORK)] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that one answer may take.", rich_help_panel=_WORK)] = 3600,
    target: options.TargetOption = "smollm2",
    draft: options.DraftsOption = None,
    dtype: options.DtypeOption = None,
    device: options.DeviceOption = None,
    backend: options.BackendOption = None,
    quantize: options.QuantizeOption = None,
    draft_vocabulary: options.VocabularyOption = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy decoding.", rich_help_panel=_SAMPLING)] = 0.0,
    top_p: Annotated[float, typer.Option(help="Keep the likeliest tokens of this total probability.", rich_help_panel=_SAMPLING)] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the sampling, of the order of variants, and of which problems.", rich_help_panel=_SAMPLING)] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the rows. One with rows of the same command is gone on with.", rich_help_panel=_OUTPUT)
    ] = None,
    baseline: Annotated[str, typer.Option(help="The variant that speed is compared with.", rich_help_panel=_OUTPUT)] = "plain",
    trace: Annotated[bool, typer.Option("--trace", help="Record what policies look at, for replay. Costs time.", rich_help_panel=_OUTPUT)] = False,
    no_memory: Annotated[bool, typer.Option("--no-memory", help="Do not measure memory at the end.", rich_help_panel=_OUTPUT)] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON instead.", rich_help_panel=_OUTPUT)] = False,
) -> None:
    """Measure every method, and other engines beside them, on the same prompts in one run.

    The variants take turns prompt by prompt. Rows go to OUT/rows.jsonl as they come; a run that was stopped, by whatever, is gone on with by the
    same command. `draftwise bench report OUT` makes the page, `draftwise bench compare A B` compares two results."""
    if ctx.invoked_subcommand is not None:
        return
    if out is None:
        raise ValueError("say where the rows go: --out DIR")
    from draftwise.bench import machine, plan, session, setup

    typed = setup.Options(
        target, next(iter(draft or ()), None), plan.split(methods), plan.split(tasks), [*(peer or []), *plan.split(peers)], limit, max_tokens,
        temperature, top_p, seed, dtype, device, threads or machine.cores(), data, block, baseline, trace,
        shlex.join(["draftwise", *sys.argv[1:]]), samples, tuple((draft or ())[1:]), backend, quantize,
        draft_vocabulary,
    )  # fmt: skip
    with Bar() as bar:
        try:
            outcome = session.bench(setup.choose(typed), out, bar, not no_memory, timeout)
        except KeyboardInterrupt:
            complain(f"interrupted: the rows so far are whole in {out}; resume with the same command")
            raise typer.Exit(INTERRUPTED) from None
    _conclude(outcome, out, baseline, as_json)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A results folder.")],
    out: Annotated[Path | None, typer.Option(help="Where the page goes. Default: the folder itself.")] = None,
    baseline: Annotated[str | None, typer.Option(help="The variant that speed is compared with. Default: the run's.")] = None,
) -> None:
    """Make the page, the Markdown table and the pictures of a result."""
    from draftwise.bench import report as pages

    for path in pages.write(folder, out, baseline):
        typer.echo(path)


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="A results folder.")],
    b: Annotated[Path, typer.Argument(help="Another.")],
    as_json: options.JsonOption = False,
) -> None:
    """Compare two results, variant by variant."""
    from draftwise.bench import compare as results

    found = results.compare(a, b)
    if as_json:
        typer.echo(json.dumps(results.to_json(found), ensure_ascii=False))
    else:
        _console().print(results.render(found))


class Bar:
    """A progress bar with the remaining time on stderr, where that is a terminal; sentences go to stderr in any case."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        columns = (
            TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left:"),
            TimeRemainingColumn(),
        )  # fmt: skip
        # few refreshes, since a thread of ours runs beside what is measured; jobs take minutes, so the speed is that of the last hours
        rates: dict[str, Any] = {"refresh_per_second": 1, "speed_estimate_period": 24 * 3600}
        self._progress = Progress(*columns, console=self.console, disable=not self.console.is_terminal, transient=True, **rates)
        self._task = self._progress.add_task("", total=None)

    def tell(self, sentence: str) -> None:
        """As `Watch.tell`."""
        self.console.print(sentence, markup=False)

    def total(self, jobs: int, done: int) -> None:
        """As `Watch.total`."""
        self._progress.reset(self._task, total=jobs, completed=done)

    def begin(self, what: str) -> None:
        """As `Watch.begin`."""
        self._progress.update(self._task, description=what)

    def end(self) -> None:
        """As `Watch.end`."""
        self._progress.advance(self._task)

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


def _console() -> Console:
    """stdout; in a pipe wide enough for every table."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=160)


def _conclude(outcome: Outcome, out: Path, baseline: str, as_json: bool) -> None:
    """Prints what came out, writes the report, and leaves with the exit code."""
    from draftwise.bench import measures
    from draftwise.bench import report as pages

    if as_json:
        missing = [dict(zip(("task", "id", "variant", "sample"), job.key, strict=False)) for job in outcome.missing]
        record = {"out": str(out), "rows": len(outcome.rows), "missing": missing, "failed": outcome.failed, "skipped": outcome.skipped}
        typer.echo(json.dumps(show.plain_json(record | (pages.summary(out, baseline) if outcome.rows else {})), ensure_ascii=False))
    elif outcome.rows:
        _console().print(_table(measures.figures(outcome.rows, baseline, outcome.memory)))
        for path in pages.write(out, None, baseline):
            typer.echo(path)
    if outcome.missing:
        variants = sorted({job.variant for job in outcome.missing})
        complain(f"{len(outcome.missing)} rows are missing, of {', '.join(variants)}: the same command tries them again")
        raise typer.Exit(INCOMPLETE)


def _table(figures: list[Any]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("variant", "precision", "tokens/s", "over plain", "tau", "accepted", "relaxed", "right"):
        table.add_column(heading, justify="left" if heading in ("variant", "precision") else "right", no_wrap=True)
    for figure in figures:
        right, of = (sum(getattr(some, name) for some in figure.accuracy.values()) for name in ("right", "of"))
        table.add_row(
            figure.variant, figure.precision, _estimate(figure.tokens_per_second, "{:.2f}"), Text(_interval(figure.over_plain)),
            _number(figure.tau, "{:.2f}"), _number(figure.acceptance_rate, "{:.0%}"), _number(figure.relaxed_share, "{:.1%}"),
            f"{right}/{of}" if of else "",
        )  # fmt: skip
    return table


def _estimate(value: Any, form: str) -> str:
    return "" if value is None else form.format(value.point)


def _interval(value: Any) -> str:
    return "" if value is None else f"{value.point:.2f} [{value.low:.2f}, {value.high:.2f}]"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
