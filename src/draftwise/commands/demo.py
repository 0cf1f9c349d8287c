"""`draftwise demo`: the same prompts decoded plainly and speculatively, in turn, and what it gained."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.table import Table

from draftwise.commands import options, prompts, show
from draftwise.commands.errors import INTERRUPTED, complain
from draftwise.commands.generate import check, follow

if TYPE_CHECKING:
    from draftwise.api import Result, Speculator
    from draftwise.stats import Summary

_WARM_UP = 16  # tokens of each method before anything is measured


class Run(NamedTuple):
    """One prompt decoded by one method."""

    prompt: str
    method: str
    result: Result


def demo(
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", help="Most new tokens for each prompt and method.")] = 96,
    as_json: options.JsonOption = False,
    target: options.TargetOption = "smollm2",
    draft: options.DraftOption = None,
    methods: Annotated[list[str] | None, typer.Option("--method", "-m", help="Compare these with plain. May be repeated.")] = None,
    dtype: options.DtypeOption = None,
    device: options.DeviceOption = None,
    backend: options.BackendOption = None,
    quantize: options.QuantizeOption = None,
    draft_vocabulary: options.VocabularyOption = None,
) -> None:
    """Watch three prompts being answered, plainly and speculatively in turn, and see what it gained.

    With a draft model the methods are adasd-stop (same text as plain decoding) and adasd (adaptive acceptance too); without one it is lookup,
    which copies from the text so far."""
    check({"max_tokens": max_tokens})
    chosen = list(dict.fromkeys(["plain", *(methods or (["adasd-stop", "adasd"] if draft else ["lookup"]))]))
    lossless = {method: promises(method) for method in chosen}
    if target == "smollm2" and draft is None:
        dtype = dtype or "float32"  # so small a model is no slower in it, and rounding then parts no texts
    speculator = options.load(options.Models(target, draft, None, None, None, None, dtype, device, backend, quantize, draft_vocabulary))
    screen = None if as_json else show.Screen(colours=True)
    place = machine(speculator)
    if screen:
        screen.console.print(f"{target}{f' with {draft}' if draft else ''}: {place}")
        if screen.paints:
            screen.console.print(show.legend())
    runs: list[Run] = []
    interrupted = False
    try:
        for run in decode(speculator, chosen, max_tokens, screen):
            runs.append(run)
    except KeyboardInterrupt:
        interrupted = True
    if as_json:
        found = {"machine": place, "target": target, "draft": draft, "runs": [record(run, runs) for run in runs]}
        typer.echo(json.dumps(show.plain_json(found), ensure_ascii=False))
    elif screen and runs:
        screen.console.print("", table(runs, chosen), *notes(runs, lossless, speculator), sep="\n")
    if interrupted:
        complain("interrupted: what was decoded so far is shown")
        raise typer.Exit(INTERRUPTED)


def promises(method: str) -> bool:
    """Whether a method claims to be lossless. Raises ValueError for one that is not there."""
    from draftwise import catalog

    return bool(catalog.method(method, None, drafter=object()).accept.lossless)


def decode(speculator: Speculator, methods: Sequence[str], max_tokens: int, screen: show.Screen | None) -> Iterator[Run]:
    """Every prompt by every method; from prompt to prompt the order turns round, so that a machine that slows down favours none. A run that
    Ctrl-C broke off has no finish reason, and is the last before KeyboardInterrupt."""
    texts = prompts.shipped()
    with options.waiting("warming up"):
        for method in methods:
            speculator.generate(asked(speculator, texts["question"]), _WARM_UP, method=method)
    for i, (name, text) in enumerate(texts.items()):
        for method in methods if i % 2 == 0 else methods[::-1]:
            if screen:
                screen.console.print()
                screen.console.rule(f"{name}: {method}", style="dim", align="left")
            stream = speculator.stream(asked(speculator, text), max_tokens, method=method)
            interrupted = follow(stream, screen)
            run = Run(name, method, stream.results[0])
            if screen:
                screen.console.print(f"{run.result.stats.tokens_per_second:.1f} tokens/s", style="dim")
            yield run
            if interrupted:
                raise KeyboardInterrupt


def asked(speculator: Speculator, text: str) -> prompts.Prompt:
    """A prompt as the model is asked it: as a chat, or as it stands where an encoder reads it."""
    return text if speculator.encodes else prompts.chat(text)


def table(runs: Sequence[Run], methods: Sequence[str]) -> Table:
    """One line for each run, prompt by prompt, and one for each method over all prompts."""
    found = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("prompt", "method", "tokens", "tokens/s", "speed-up", "tau", "accepted", "same text"):
        found.add_column(column, justify="left" if column in ("prompt", "method", "same text") else "right", no_wrap=True)
    for name in dict.fromkeys(run.prompt for run in runs):
        some = sorted((run for run in runs if run.prompt == name), key=lambda run: methods.index(run.method))
        for run in some:
            found.add_row(*_row(record(run, runs)), end_section=run is some[-1])
    if runs and len(runs) % len(methods) == 0 and all(run.result.finish_reason for run in runs):
        for method in methods:
            found.add_row(*_row(total(runs, method)), style="bold")
    return found


def notes(runs: Sequence[Run], lossless: Mapping[str, bool], speculator: Speculator) -> list[str]:
    """What a reader of the table has to know: of a lossless method whose text differs, whether rounding decided."""
    found = ["tokens/s: new tokens over the whole time, reading the prompt included; tau: tokens per pass of the target."]
    differ = [run for run in runs if run.result.finish_reason and record(run, runs)["same_text"] is False]
    if lossy := {run.method for run in differ if not lossless[run.method]}:
        found.append(f"{', '.join(sorted(lossy))} may change the text: its acceptance gives exactness away for speed.")
    return found + [_why(run, runs, speculator) for run in differ if lossless[run.method]]


def _why(run: Run, runs: Sequence[Run], speculator: Speculator) -> str:
    """Of a text that should be that of plain decoding: where it leaves it, and how close the target's choice was there."""
    from draftwise.commands.compare import compare, tolerance

    target: Any = speculator.engine.target
    plain = next(r.result for r in runs if r.prompt == run.prompt and r.method == "plain")
    given = speculator.inputs(asked(speculator, prompts.shipped()[run.prompt]))
    found = compare(target, given.tokens, plain.tokens, run.result.tokens, source=given.source)
    assert found is not None  # the texts differ
    verdict = "which is rounding" if found.gap <= tolerance(target) else "which is a DEFECT: please report it"
    return f"{run.prompt}, {run.method}: another text from token {found.position} on, where two tokens are {found.gap:.2g} logits apart, {verdict}."


def record(run: Run, runs: Sequence[Run]) -> dict[str, Any]:
    """A run against the plain one of its prompt."""
    plain = next((r.result for r in runs if r.prompt == run.prompt and r.method == "plain"), None)
    stats = run.result.stats
    return {
        "prompt": run.prompt,
        "method": run.method,
        "speed_up": stats.tokens_per_second / plain.stats.tokens_per_second if plain and plain.stats.tokens_per_second else None,
        "same_text": run.result.tokens == plain.tokens if plain else None,
        "text": run.result.text,
        "finish_reason": run.result.finish_reason,
        "stats": stats._asdict(),
    }


def total(runs: Sequence[Run], method: str) -> dict[str, Any]:
    """A method over all prompts, as `record` gives it: all tokens over all the time."""
    mine = [record(run, runs) for run in runs if run.method == method]
    speed, plain = (_ratio([r.result.stats for r in runs if r.method == m], "tokens", "seconds") for m in (method, "plain"))
    stats = [run.result.stats for run in runs if run.method == method]
    figures = {"tokens": sum(s.tokens for s in stats), "drafted": sum(s.drafted for s in stats), "tokens_per_second": speed}
    figures |= {"tau": _ratio(stats, "tokens", "rounds"), "acceptance_rate": _ratio(stats, "accepted", "levels")}
    return {"prompt": "all", "method": method, "speed_up": speed / plain, "same_text": all(r["same_text"] for r in mine), "stats": figures}


def machine(speculator: Speculator) -> str:
    """Where it runs, in one line."""
    import torch

    backend: Any = speculator.engine.target
    dtype = options.precision(backend)
    if backend.device.type == "cuda":
        return f"{dtype} on {torch.cuda.get_device_name(backend.device)}"
    return f"{dtype} on {backend.device}, {torch.get_num_threads()} threads, {processor()}"


def processor() -> str:
    """The name of the CPU, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor() or platform.machine())


def _ratio(stats: Sequence[Summary], above: str, below: str) -> float:
    """The sum of one figure over the sum of another."""
    whole: float = sum(getattr(s, above) for s in stats)
    return whole / (sum(getattr(s, below) for s in stats) or 1)


def _row(found: dict[str, Any]) -> list[str]:
    stats, plain = found["stats"], found["method"] == "plain"
    speed_up = f"{found['speed_up']:.2f}x" if found["speed_up"] and not plain else ""
    same = "" if plain or found["same_text"] is None else "yes" if found["same_text"] else "no"
    accepted = f"{stats['acceptance_rate']:.0%}" if stats["drafted"] else ""
    figures = [str(stats["tokens"]), f"{stats['tokens_per_second']:.1f}", speed_up, f"{stats['tau']:.2f}", accepted]
    return [found["prompt"], found["method"], *figures, same]
