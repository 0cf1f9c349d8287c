"""`draftwise cite`: BibTeX of the papers behind methods."""

from __future__ import annotations

from typing import Annotated

import typer


def cite(
    names: Annotated[list[str], typer.Argument(metavar="METHOD...", help="Names from `draftwise methods`, with or without options.")],
) -> None:
    """Print the BibTeX entries of the papers behind the named methods, policies, rules or drafters."""
    papers = {key: None for name in names for key in keys(name)}
    from draftwise.bibliography import bibtex

    typer.echo("\n\n".join(bibtex(key) for key in papers))


def keys(spec: str) -> tuple[str, ...]:
    """The papers' keys of everything a name stands for; of a method also those of its parts. Raises ValueError for an unknown name."""
    from draftwise import catalog
    from draftwise.spec import parse

    name = parse(spec).name
    known = {kind: catalog.entries(kind) for kind in catalog.KINDS}
    found = [entries[name] for entries in known.values() if name in entries]
    if not found:
        everything = sorted({n for entries in known.values() for n in entries})
        raise ValueError(f"nothing is called {name!r}: {catalog.suggest(name, everything)}")
    papers: dict[str, None] = {}
    for entry in found:
        parts = [known[kind].get(parse(part).name) for kind, part in zip(catalog.KINDS, entry.parts or (), strict=False)]
        papers |= dict.fromkeys(key for one in (entry, *parts) if one is not None for key in one.papers)
    if not papers:
        raise ValueError(f"there is no paper behind {name!r}")
    return tuple(papers)
