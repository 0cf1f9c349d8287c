"""The one place where an error of a command becomes a sentence on stderr and an exit code."""

from __future__ import annotations

import errno
import os
import sys
from typing import Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

OK, DEFECT, BAD_INPUT, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 130, 141
EXIT_CODES = (
    "Exit codes: 0 done, 1 verify found a defect, 2 bad input or a model that cannot be had, 130 interrupted by Ctrl-C, "
    "141 the reader of stdout went away."
)


class Guarded(TyperGroup):
    """A command group whose commands end in a sentence instead of a traceback. `--debug` lets the traceback through.

    Only ValueError (bad input) and OSError (files, network) are expected; anything else is a bug and keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            complain("interrupted")
            raise typer.Exit(INTERRUPTED) from None
        except SystemExit as error:
            if isinstance(error.__context__, BrokenPipeError):  # rich's way of leaving
                raise typer.Exit(BROKEN_PIPE) from None
            raise
        except (ValueError, OSError, ImportError) as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                _close_stdout()
                raise typer.Exit(BROKEN_PIPE) from None
            if ctx.params.get("debug"):
                raise
            complain(sentence(error))
            raise typer.Exit(BAD_INPUT) from None


def complain(message: str) -> None:
    """One line `error: message` on stderr."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(Text.assemble(("error: ", "bold red"), message))


def sentence(error: Exception) -> str:
    """What an error says, on one line."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def _close_stdout() -> None:
    """Points stdout at nothing, so that the flush at exit does not complain a second time."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
