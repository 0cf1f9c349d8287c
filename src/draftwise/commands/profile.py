"""`draftwise profile`: what verifying and drafting cost on this machine, and what acceptance makes drafting pay."""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from draftwise.bench import profile as bench
from draftwise.commands import options
from draftwise.commands.errors import INTERRUPTED, complain

if TYPE_CHECKING:
    from draftwise.protocols import Backend

_FILE, _PICTURE = "profile.json", "profile.svg"
_FEW, _NOISY = 5, 0.1  # passes of a kind below which, and scatter of the passes above which, the reader is warned
_NAMES = {True: "this draft", False: "a draft that costs nothing"}


def profile(
    rows: Annotated[
        str, typer.Option("--rows", help="Tokens in a pass of the target: numbers and ranges; 1 is always measured.")
    ] = "1-9,12,17,24,32",
    contexts: Annotated[str, typer.Option("--contexts", help="Cached tokens before the pass; cut to what the models hold.")] = "64,512,2048",
    seconds: Annotated[float, typer.Option("--seconds", help="Time for measuring, after loading and warming up.")] = 60.0,
    out: Annotated[Path | None, typer.Option("--out", "-o", help=f"Save {_FILE} and {_PICTURE} here; goes on with what is there.")] = None,
    as_json: options.JsonOption = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the order of the passes and of the ids that are read.")] = 0,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads; default: torch's own choice.")] = None,
    target: options.TargetOption = "smollm2",
    draft: options.DraftOption = None,
    dtype: options.DtypeOption = None,
    device: options.DeviceOption = None,
    backend: options.BackendOption = None,
    quantize: options.QuantizeOption = None,
    draft_vocabulary: options.VocabularyOption = None,
) -> None:
    """Measure what a pass of the target over k tokens and a step of the draft cost here, and see what acceptance makes drafting pay.

    Passes of all widths and contexts are timed in turn, in shuffled rounds, until the time is over; medians are shown. Ctrl-C shows what was
    measured so far. Run again with the same --out, it adds to what is there."""
    widths, asked = sorted({1, *numbers(rows, "--rows")}), sorted(set(numbers(contexts, "--contexts")))
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(f"--seconds must be a finite number above 0, got {seconds}")
    config = configuration(target, draft, widths, asked, dtype, device, (backend, quantize, draft_vocabulary), threads, seed)
    samples = resume(out / _FILE, config) if out else {}
    speculator = options.load(options.Models(target, draft, None, None, None, None, dtype, device, backend, quantize, draft_vocabulary))
    options.decodes_only(speculator, "profile")
    backends = {bench.TARGET: speculator.context.target} | ({bench.DRAFT: speculator.context.draft} if draft else {})
    config["precision"] = [options.precision(model) for model in backends.values()]
    fitting = clipped(asked, widths, backends)
    interrupted = False
    try:
        for _ in passes(backends, bench.jobs(fitting, widths, bool(draft)), samples, seconds, seed):
            if out:
                save(out / _FILE, config, samples)
    except KeyboardInterrupt:
        if not samples:
            raise
        interrupted = True
    if out:
        save(out / _FILE, config, samples)
    report(config, samples, as_json)
    if out:
        picture(samples, heading(config).replace(": ", "\n", 1), out / _PICTURE)
    if interrupted:
        complain("interrupted: what was measured so far is shown")
        raise typer.Exit(INTERRUPTED)


def numbers(text: str, option: str) -> list[int]:
    """'1,2,4-6' -> [1, 2, 4, 5, 6]. Raises ValueError for anything but whole numbers from 1 on and ascending ranges of them."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        ends = (first, last if dash else first)
        if not all(end.isascii() and end.isdigit() and len(end) < 8 for end in ends) or not 1 <= int(ends[0]) <= int(ends[1]):
            raise ValueError(f"{option} takes whole numbers of at least 1 with commas between them, and ranges like 1-8, got {text!r}")
        found.extend(range(int(ends[0]), int(ends[1]) + 1))
    return found


def configuration(
    target: str,
    draft: str | None,
    rows: Sequence[int],
    contexts: Sequence[int],
    dtype: str | None,
    device: str | None,
    changed: tuple[str | None, str | None, str | None],
    threads: int | None,
    seed: int,
) -> dict[str, Any]:
    """What must be the same for measurements to be put together (`changed`: backend, quantize, draft vocabulary). Sets torch's threads if given."""
    import torch

    from draftwise.bench.machine import facts
    from draftwise.loading import for_llamacpp
    from draftwise.picking import pick_backend, pick_device, pick_dtype, quantization

    if threads:
        torch.set_num_threads(threads)
    where, own = pick_device(device), pick_backend(changed[0])
    return {
        "target": target,
        "draft": draft,
        "rows": list(rows),
        "contexts": list(contexts),
        "dtype": str(pick_dtype(dtype, where)).removeprefix("torch."),
        "device": str(where),
        "backend": "llamacpp" if for_llamacpp(target, own, quantization(changed[1])[0]) else str(own),
        "quantize": changed[1],
        "draft_vocabulary": changed[2],
        "gpu": torch.cuda.get_device_name(where) if where.type == "cuda" else None,
        "seed": seed,
        **facts(torch.get_num_threads()),
        **{name: version(name) for name in ("draftwise", "torch", "transformers")},
    }


def resume(path: Path, config: Mapping[str, Any]) -> bench.Samples:
    """The measurements of an earlier run; {} where there was none. Raises ValueError for those of another configuration, with the difference."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        before, samples = dict(found["config"]), {bench.Job(*job): [float(s) for s in some] for job, some in found["samples"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no profile of draftwise ({error}): remove it, or choose another --out") from None
    keys = [key for key in {**config, **before} if key != "precision"]  # which is known once the models are loaded
    other = [f"{key} was {before.get(key)!r} and is {config.get(key)!r}" for key in keys if before.get(key) != config.get(key)]
    if other:
        raise ValueError(f"{path} holds a profile of another configuration: {'; '.join(other)}: remove it, or choose another --out")
    return samples


def save(path: Path, config: Mapping[str, Any], samples: bench.Samples) -> None:
    """Writes beside the file and renames, so that it is whole whatever happens."""
    record = summary(config, samples) | {"samples": [[list(job), some] for job, some in sorted(samples.items())]}
    new = path.with_name(f".{path.name}.new")
    try:
        new.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def summary(config: Mapping[str, Any], samples: bench.Samples) -> dict[str, Any]:
    """What `--json` prints: configuration, command, the medians, and what follows from them."""
    return {
        "config": dict(config),
        "command": shlex.join(["draftwise", *sys.argv[1:]]),
        "costs": bench.figures(samples),
        "pay_off": [{"context": c, "drafter": bench.DRAFT if draft else "costless", **bench.pay_off(costs)} for draft, c, costs in _cases(samples)],
    }


def clipped(contexts: Sequence[int], rows: Sequence[int], backends: Mapping[str, Backend]) -> list[int]:
    """The contexts that fit into all models; says so on stderr where one had to be cut."""
    name, longest = min(((name, backend.max_length) for name, backend in backends.items()), key=lambda pair: pair[1])
    fitting = bench.clip(contexts, rows, longest)
    if fitting != list(contexts):
        long = ", ".join(str(c) for c in contexts if c not in fitting)
        how = f"context {long} is cut to {fitting[-1]}: the {name} holds {longest} tokens, and the widest pass needs {max(rows)}"
        Console(stderr=True, highlight=False, soft_wrap=True).print(how)
    return fitting


def passes(backends: Mapping[str, Backend], work: Sequence[bench.Job], samples: bench.Samples, seconds: float, seed: int) -> Iterator[int]:
    """Measures, with a bar on a terminal's stderr. Yields after every round."""
    probe = bench.Probe(backends, work, seed)
    to_read = sum(job.rows for job in work) + sum({(job.model, job.context): job.context for job in work}.values())
    console = Console(stderr=True, highlight=False)
    columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("warming up", total=to_read)
        for done in probe.warm_up():
            bar.update(task, completed=done)
        bar.reset(task, total=seconds, description="round 1")
        start, whole = time.perf_counter(), 0
        for rounds in bench.measure(probe, samples, seconds, seed):
            bar.update(task, completed=min(seconds, time.perf_counter() - start), description=f"round {rounds + 1}")
            if rounds > whole:
                whole = rounds
                yield rounds


def report(config: Mapping[str, Any], samples: bench.Samples, as_json: bool) -> None:
    """The tables and sentences, or JSON, on stdout."""
    if as_json:
        typer.echo(json.dumps(summary(config, samples), ensure_ascii=False))
        return
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 200)
    parts: list[RenderableType] = [heading(config), "", cost_table(samples), *notes(samples)]
    for draft in dict.fromkeys(draft for draft, *_ in _cases(samples)):
        cases = {context: costs for kind, context, costs in _cases(samples) if kind is draft}
        parts += ["", f"What {_NAMES[draft]} gains: the best length n by acceptance, and the acceptance that a length needs", pay_table(cases)]
        parts += [f"Context {context}: {bench.conclusion(costs, _NAMES[draft])}" for context, costs in cases.items()]
    for part in parts:
        console.print(part)


def notes(samples: bench.Samples) -> list[str]:
    """What a reader of the costs has to know: what they are, and how far to trust them."""
    found = bench.figures(samples)
    fewest, most = min(f["passes"] for f in found), max(f["passes"] for f in found)
    count = f"{most}" if fewest == most else f"{fewest} to {most}"
    lines = [f"In ms: medians of {count} passes each, ± half the distance of the quartiles; x: over the pass of one token."]
    if fewest < _FEW:
        lines.append(f"So few passes are a first impression only: give it more --seconds, so that each is made {_FEW} times or more.")
    elif (spread := sorted(_spread(f) / f["median_s"] for f in found)[len(found) // 2]) > _NOISY:
        lines.append(f"The passes scatter by ±{spread:.0%}: something else seems to use this machine, so take what follows with care.")
    return lines


def heading(config: Mapping[str, Any]) -> str:
    """What was measured where, in a line."""
    names = [Path(config[key]).name for key in ("target", "draft") if config[key]]
    place = config["gpu"] or f"{config['device']}, threads: {config['threads']}, {config['cpu']}"
    return f"{' with '.join(names)}: {' with '.join(dict.fromkeys(config['precision']))} on {place}"


def cost_table(samples: bench.Samples) -> Table:
    """A line for each width and one for the draft's step, a column for each context."""
    contexts = sorted({job.context for job in samples})
    table = _table("target reads", *(f"context {context}" for context in contexts))
    found = {bench.Job(f["model"], f["context"], f["rows"]): f for f in bench.figures(samples)}
    for model, k in sorted({(job.model, job.rows) for job in samples}, key=lambda pair: (pair[0] == bench.DRAFT, pair[1])):
        name = "draft step" if model == bench.DRAFT else f"{k} token{'s'[: k > 1]}"
        table.add_row(name, *(_cost(found, bench.Job(model, context, k)) for context in contexts))
    return table


def pay_table(cases: Mapping[int, bench.Costs]) -> Table:
    """The best length and its speed-up by acceptance, then the acceptance that a length needs; a column for each context."""
    table = _table("best n", *(f"context {context}" for context in cases))
    found = [bench.pay_off(costs) for costs in cases.values()]
    for i, a in enumerate(bench.ACCEPTANCES):
        cells = [pay["best"][i] for pay in found]
        table.add_row(f"at {a:.0%}", *(f"{c['n']:>2}  {c['speed_up']:.2f}x" for c in cells), end_section=a == bench.ACCEPTANCES[-1])
    needs = [{need["n"]: need["acceptance"] for need in pay["needed"]} for pay in found]
    for n in sorted({n for need in needs for n in need}):
        table.add_row(f"n = {n} needs", *(_share(need.get(n)) if n in need else "" for need in needs))
    return table


def picture(samples: bench.Samples, title: str, path: Path) -> None:
    """Draws, or says in a sentence why not."""
    try:
        bench.draw(samples, title, path)
    except ImportError:
        complaint = f"no {path.name}, since matplotlib is not installed: pip install matplotlib"
        Console(stderr=True, highlight=False, soft_wrap=True).print(complaint)


def _cases(samples: bench.Samples) -> list[tuple[bool, int, bench.Costs]]:
    """With the measured draft (True) and with one that costs nothing: each context whose costs are known."""
    contexts = sorted({job.context for job in samples})
    found = [(draft, context, bench.costs_at(samples, context, draft)) for draft in (True, False) for context in contexts]
    return [(draft, context, costs) for draft, context, costs in found if costs]


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    return table


def _cost(found: Mapping[bench.Job, Mapping[str, Any]], job: bench.Job) -> str:
    figure, one = found.get(job), found.get(bench.Job(bench.TARGET, job.context, 1))
    if figure is None:
        return ""
    ms, spread = 1000 * figure["median_s"], 1000 * _spread(figure)
    digits = 0 if ms >= 100 else 1 if ms >= 10 else 2
    scatter, over = f" ±{spread:.{digits}f}" if figure["passes"] > 2 else "", f"{figure['median_s'] / one['median_s']:.2f}x" if one else ""
    return f"{ms:.{digits}f}{scatter} {over:>6}"


def _spread(figure: Mapping[str, Any]) -> float:
    """Half the distance of the quartiles, in seconds."""
    return float(figure["q3_s"] - figure["q1_s"]) / 2


def _share(a: float | None) -> str:
    return "never pays" if a is None else f"{a:.0%}"
