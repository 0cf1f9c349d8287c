"""What the commands put on the screen: text coloured by origin, its legend, the table of figures."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from draftwise.stats import Summary

STYLES = {"drafted": Style(color="green"), "relaxed": Style(color="yellow", underline=True), "target": Style()}
MEANING = {"drafted": "drafted and accepted", "relaxed": "accepted by relaxation", "target": "written by the target"}
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


class Screen:
    """Where decoded text goes, token by token. Colours and the taming of control characters are for terminals; a pipe gets the text as it is."""

    def __init__(self, colours: bool) -> None:
        self.console = Console(highlight=False, soft_wrap=True, markup=False)
        self.paints = colours and self.console.is_terminal
        self._at_line_start = True

    def write(self, text: str, origin: str = "target") -> None:
        """Prints a piece of text at once, in the colour of its origin."""
        if not text:
            return
        self._at_line_start = text.endswith("\n")  # first: Ctrl-C may come right after the text is out
        if self.console.is_terminal:
            style = STYLES[origin] if self.paints else None
            self.console.out(_CONTROL.sub(_visible, text), style=style, end="", highlight=False)
        else:
            self.console.file.write(text)
        self.console.file.flush()

    def end(self) -> None:
        """Ends the line, if it is not at its end."""
        if not self._at_line_start:
            self.write("\n")


def legend() -> Text:
    """One line that says what the colours mean."""
    return Text("   ").join(Text(meaning, STYLES[origin]) for origin, meaning in MEANING.items())


def figures(stats: Summary, heading: str, account: Mapping[str, float] | None = None) -> Table:
    """The figures of one text as a table of two columns. `account`: of a rule that keeps one, as in `draftwise.streams.Result`."""
    table = Table(title=heading, show_header=False, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name, value in _rows(stats):
        table.add_row(name, value)
    if account:
        table.add_row("account", ", ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in account.items()))
    return table


def _rows(s: Summary) -> Iterable[tuple[str, str]]:
    yield "tokens", f"{s.tokens} in {s.seconds:.2f} s"
    yield "tokens/s", f"{s.tokens_per_second:.1f}"
    yield "tau", f"{s.tau:.2f} tokens per target pass ({s.rounds} passes)"
    if s.drafted:
        trees = s.levels != s.drafted
        yield "drafted", f"{s.drafted} ({s.drafted_per_round:.1f} per pass)" + (f" on {s.levels} levels" if trees else "")
        yield "accepted", f"{s.accepted} ({s.acceptance_rate:.0%} of the {'levels' if trees else 'drafted'})"
    if len(s.drafters) > 1:
        yield "drafted by", ", ".join(f"{name} in {n} passes" for name, n in s.drafters)
    if s.relaxed:
        yield "relaxed", f"{s.relaxed} ({s.relaxed_share:.0%} of the text)"
    yield "time", f"draft {s.draft_share:.0%}, verify {s.verify_share:.0%}, other {s.other_share:.1%}"


def plain_json(value: Any) -> Any:
    """The value with tuples as lists and numbers that JSON lacks (nan, inf) as None."""
    if isinstance(value, Mapping):
        return {str(k): plain_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_json(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _visible(match: re.Match[str]) -> str:
    """A control character as its escape, so that a model cannot steer the terminal."""
    return repr(match[0])[1:-1]
