"""The command line `draftwise`: what the commands are called and in which order they are shown."""

from __future__ import annotations

from typing import Annotated

import typer

from draftwise.commands.bench import app as bench
from draftwise.commands.calibrate import calibrate_tree
from draftwise.commands.cite import cite
from draftwise.commands.demo import demo
from draftwise.commands.errors import EXIT_CODES, Guarded
from draftwise.commands.generate import generate
from draftwise.commands.methods import methods
from draftwise.commands.plan import plan
from draftwise.commands.profile import profile
from draftwise.commands.replay import replay
from draftwise.commands.verify import verify

app = typer.Typer(
    cls=Guarded,
    help="Speculative decoding that tunes itself.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def root(
    ctx: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error instead of one sentence.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    """Speculative decoding that tunes itself."""
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"draftwise {installed('draftwise')}")
        raise typer.Exit()
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())
        raise typer.Exit()


for command in (generate, demo, methods, cite, verify, profile, plan, calibrate_tree, replay):
    app.command(epilog=EXIT_CODES)(command)
app.add_typer(bench, name="bench")


def main() -> None:
    """Runs the command line."""
    app(prog_name="draftwise")


if __name__ == "__main__":
    main()
