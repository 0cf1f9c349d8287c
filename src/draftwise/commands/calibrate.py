"""`draftwise calibrate-tree`: a draft tree from data."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from draftwise.commands import options, prompts
from draftwise.commands.errors import INTERRUPTED, complain
from draftwise.commands.generate import check

if TYPE_CHECKING:
    from draftwise.api import Speculator
    from draftwise.bench.store import Journal

Runs = list[list[int]]


def calibrate_tree(
    out: Annotated[Path, typer.Argument(metavar="OUT.json", help="Where the tree goes. Beside it OUT.json.runs keeps what was measured.")],
    prompts_file: Annotated[
        Path | None, typer.Option("--prompts", "-p", help="A .jsonl file or one prompt a line, as for `verify`. Default: the demo's three.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Only the first so many prompts.")] = 30,
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompts into the model's chat template.")] = False,
    samples: Annotated[int, typer.Option(min=1, help="Texts for each prompt, which share what the drafter learns.")] = 4,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", min=1, help="Tokens of each text.")] = 128,
    temperature: Annotated[float, typer.Option(help="Of the texts; 0 is greedy, and then one sample a prompt is enough.")] = 0.6,
    seed: Annotated[int, typer.Option(help="Of the texts.")] = 0,
    drafter: Annotated[str, typer.Option(help="Whose tree: stand or recycling.")] = "stand",
    nodes: Annotated[int, typer.Option(min=1, help="Nodes of the tree.")] = 80,
    width: Annotated[int, typer.Option(min=1, max=64, help="Most children of a node.")] = 10,
    depth: Annotated[int, typer.Option(min=1, max=64, help="Most levels.")] = 20,
    as_json: options.JsonOption = False,
    target: options.TargetOption = "smollm2",
    dtype: options.DtypeOption = None,
    device: options.DeviceOption = None,
    backend: options.BackendOption = None,
    quantize: options.QuantizeOption = None,
) -> None:
    """Find the draft tree whose nodes get accepted most often, on your model and prompts.

    The target samples texts, plainly, and at each place the drafter's children are judged. Use the result with --drafter stand:tree=OUT.json; its
    nodes are ordered, so that stand:tree=OUT.json,nodes=8 takes the best eight. Each finished prompt is kept at once: after Ctrl-C the same command
    goes on, with a larger --limit as well; with other --nodes or --depth it only chooses anew."""
    from draftwise.bench import calibration
    from draftwise.files import whole

    calibration.star(drafter, width, 1)
    check({"max_tokens": max_tokens, "temperature": temperature, "seed": seed})
    asked: Sequence[prompts.Prompt] = prompts.read_many(prompts_file, limit) if prompts_file else [*prompts.shipped().values()][:limit]
    config: dict[str, Any] = {
        "target": target, "dtype": dtype, "prompts": str(prompts_file or "demo"), "chat": chat or not prompts_file,
        "samples": samples, "max_tokens": max_tokens, "temperature": temperature, "seed": seed, "drafter": drafter, "width": width,
    }  # fmt: skip
    with journal(out.with_name(out.name + ".runs"), config) as kept:
        try:
            if len(kept.lines) - 1 < len(asked):
                speculator = options.load(options.Models(target, method="plain", dtype=dtype, device=device, backend=backend, quantize=quantize))
                measure(speculator, asked, config, kept)
        except KeyboardInterrupt:
            complain(f"interrupted: {len(kept.lines) - 1} of {len(asked)} prompts are kept in {kept.path}; the same command goes on")
            raise typer.Exit(INTERRUPTED) from None
        runs: Runs = [run for line in kept.lines[1 : len(asked) + 1] for run in line["runs"]]
    made = config | {"prompts": Path(config["prompts"]).name, "texts": len(runs), "command": shlex.join(["draftwise", *sys.argv[1:]])}
    record = calibration.tree(runs, nodes, width, depth, made)
    with whole(out) as file:
        file.write((json.dumps(record) + "\n").encode())
    if as_json:
        typer.echo(json.dumps(record))
    else:
        show(record, out, drafter)


@contextmanager
def journal(path: Path, config: Mapping[str, Any]) -> Iterator[Journal]:
    """The file of what was measured, whose first line is the configuration. Raises ValueError for one of another configuration."""
    from draftwise.bench.store import Journal, differences

    kept = Journal(path)
    try:
        if not kept.lines:
            kept.append(config)
        if found := list(differences(kept.lines[0], json.loads(json.dumps(config)))):
            raise ValueError(f"{path} holds measurements of another configuration ({'; '.join(found)}): name another file, or the same options")
        yield kept
    finally:
        kept.close()


def measure(speculator: Speculator, asked: Sequence[prompts.Prompt], config: Mapping[str, Any], kept: Journal) -> None:
    """Appends the runs of each prompt that is not there yet, with a bar on a terminal's stderr."""
    from draftwise.bench import calibration
    from draftwise.text import encode, stop_ids
    from draftwise.types import Sampling

    backend, console = speculator.context.target, Console(stderr=True, highlight=False)
    ends = stop_ids(speculator._model, speculator.tokenizer, ())
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total} texts"), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        first = len(kept.lines) - 1
        task = bar.add_task("sampling", total=len(asked) * config["samples"], completed=first * config["samples"])
        for i, prompt in enumerate(asked[first:], first):
            ids = encode(speculator.tokenizer, prompts.chat(prompt) if config["chat"] else prompt, backend.vocab_size)
            drafter = calibration.star(config["drafter"], config["width"], backend.vocab_size)  # a prompt starts with an empty store
            runs = []
            for sample in range(config["samples"]):
                seed = (config["seed"] + i * config["samples"] + sample) % 2**64
                wanted = Sampling(config["temperature"], seed=seed, max_tokens=config["max_tokens"], stop_ids=ends)
                runs.append(calibration.ranks(backend, drafter, ids, wanted, sample))
                bar.advance(task)
            kept.append({"prompt": i, "runs": runs})


def show(record: Mapping[str, Any], out: Path, drafter: str) -> None:
    """What the tree is expected to give by its size."""
    console = Console(highlight=False, soft_wrap=True, markup=False)
    made = record["made"]
    gains = Table("nodes", "tokens a pass", title=f"expected at {made['places']} places of {made['texts']} texts", title_justify="left")
    for n, tau in made["tokens_per_pass"].items():
        gains.add_row(n, f"{tau:.2f}")
    console.print(gains)
    deepest, widest = max(map(len, record["paths"])), sum(len(path) == 1 for path in record["paths"])
    console.print(f"{len(record['paths'])} nodes, {deepest} levels, {widest} children of the root. Use it: --drafter {drafter}:tree={out}")
