"""`draftwise methods`: what there is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from draftwise.commands.options import JsonOption

if TYPE_CHECKING:
    from draftwise.catalog import Entry

_HEADINGS = {
    "method": "Methods (--method): a length policy, an acceptance rule and a drafter",
    "length": "Length policies (--length): how many tokens to draft",
    "accept": "Acceptance rules (--accept): which drafted tokens stay",
    "drafter": "Drafters (--drafter): who drafts",
}


def methods(
    kind: Annotated[str | None, typer.Option("--kind", "-k", help="Only these: method, length, accept, drafter or backend.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List methods, length policies, acceptance rules and drafters, with their options and papers."""
    from draftwise import catalog

    kinds = list(_HEADINGS) if kind is None else [kind]
    entries = {k: list(catalog.entries(k).values()) for k in kinds}
    if as_json:
        typer.echo(json.dumps([row(e) for some in entries.values() for e in some], indent=2, ensure_ascii=False))
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200  # a table in a pipe is for grep: no line is folded
    for k, some in entries.items():
        console.print(table(_HEADINGS.get(k, k), some))
        console.print()
    console.print("NAME:option=value,... sets options. `draftwise cite NAME` prints the paper's BibTeX.", style="dim")


def row(entry: Entry) -> dict[str, Any]:
    """What `--json` says of an entry."""
    fields = ("kind", "name", "title", "lossless", "paper", "url")
    options = {key: repr(value) if not isinstance(value, (bool, int, float, str, type(None))) else value for key, value in entry.options.items()}
    return {field: getattr(entry, field) for field in fields} | {"options": options, "parts": list(entry.parts) if entry.parts else None}


def table(heading: str, entries: list[Entry]) -> Table:
    """The entries of one kind."""
    found = Table(title=heading, title_justify="left", title_style="bold", header_style="dim", box=None, padding=(0, 2, 0, 0))
    rules = any(entry.lossless is not None for entry in entries)
    found.add_column("name", no_wrap=True, style="green")
    if rules:
        found.add_column("lossless", no_wrap=True)
    found.add_column("what it does", min_width=20)
    found.add_column("options", style="dim")
    found.add_column("paper", no_wrap=True)
    for entry in entries:
        options = " ".join(f"{key}={_show(value)}" for key, value in entry.options.items())
        found.add_row(escape(entry.name), *([_flag(entry.lossless)] if rules else []), escape(entry.title), escape(options), _source(entry.url))
    return found


def _source(url: str) -> str:
    """Short enough for a column: the arXiv number or the site, linked where a terminal can."""
    site = url.removeprefix("https://")
    short = site.removeprefix("arxiv.org/abs/") if site.startswith("arxiv.org") else site.split("/")[0]
    return f"[link={url}]{short}[/link]" if url else ""


def _show(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def _flag(lossless: bool | None) -> str:
    return "" if lossless is None else "yes" if lossless else "[yellow]no[/yellow]"
