"""Where a peer's parts are: its worker's script, and the packages of the interpreter that runs it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

_ASK = "import importlib.util as u, sys; sys.exit(3 if u.find_spec(sys.argv[1]) is None else 0)"
_LACKS = 3
_PATIENCE_S = 60


def script(name: str) -> str:
    """The path of ``workers/<name>_worker.py``."""
    return str(Path(__file__).parent.parent / "workers" / f"{name}_worker.py")


def lacking(python: str, module: str) -> str | None:
    """Why `module` cannot be had under the interpreter `python`, half a sentence, or None. The module itself is not imported."""
    if shutil.which(python) is None:
        return f"there is no interpreter {python!r}"
    try:
        code = subprocess.run([python, "-c", _ASK, module], capture_output=True, timeout=_PATIENCE_S).returncode
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{python!r} does not answer ({type(error).__name__})"
    if code == _LACKS:
        return f"{python!r} has no package {module!r}"
    return None if code == 0 else f"{python!r} ended with exit code {code} when asked for {module!r}"
