"""What a generated program may not do, tried for real, with all layers together and with every layer that is meant to hold alone.

Nothing is taken from the program's word where it can be seen from outside, and nothing is at stake if a layer fails: the files are ours, the
listener is ours, the signal has a handler, forks and allocations are bounded."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from draftwise.bench import sandbox

pytestmark = pytest.mark.skipif(os.name != "posix", reason="programs are run on Linux and macOS only")

AUDIT, LANDLOCK, SECCOMP = ("limits", "audit"), ("limits", "landlock"), ("limits", "seccomp")
LIBC = "import ctypes; libc = ctypes.CDLL(None)"
TRY = """
def attempt(action, *arguments):
    try:
        return action(*arguments)
    except BaseException:
        return None
"""


@pytest.fixture(scope="session")
def held() -> tuple[str, ...]:
    """The layers this machine has."""
    return sandbox.run("").layers


def run(program: str, layers: tuple[str, ...] = sandbox.LAYERS, timeout_s: float = 20.0) -> sandbox.Outcome:
    return sandbox.run(TRY + textwrap.dedent(program), timeout_s=timeout_s, memory_mb=256, layers=layers)


def need(layers: tuple[str, ...], held: tuple[str, ...]) -> None:
    missing = set(layers) - set(held)
    if missing and layers != sandbox.LAYERS:  # all together have to do with what there is
        pytest.skip(f"this machine has no {', '.join(missing)}")


def of(*sets: tuple[str, ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("layers", [sandbox.LAYERS, *sets], ids=lambda layers: "all" if layers == sandbox.LAYERS else layers[-1])


def test_a_program_that_ends_passes_and_all_layers_of_this_kernel_hold(held: tuple[str, ...]) -> None:
    assert run("x = 1") == (True, "", held)
    assert "audit" in held
    if sys.platform == "linux":
        assert "limits" in held


def test_why_a_program_failed() -> None:
    assert run("assert 1 == 2, 'one is not two'").reason == "AssertionError: one is not two"
    assert run("f(").reason.startswith("SyntaxError: ")
    assert run("class E(Exception):\n    def __str__(self):\n        raise SystemExit\nraise E").reason == "an exception that cannot be shown"
    assert run("import os; os.abort()").reason.startswith("ended by SIG")


def test_ordinary_programs_work() -> None:
    outcome = run(
        """
        from __future__ import annotations
        import bisect, collections, copy, dataclasses, datetime, decimal, functools, hashlib, heapq, io, itertools, json, math, random, re, statistics
        import string, sys, typing, unittest
        from contextlib import redirect_stdout

        @dataclasses.dataclass
        class Point:
            x: int
        assert Point(3).x == 3 and hashlib.md5(b"a").hexdigest().startswith("0cc1") and random.random() < 1
        with redirect_stdout(open("/dev/null", "w")):
            print("nothing")
        if __name__ == "__main__":
            raise RuntimeError("a program of its own was begun")
        """.replace("from __future__ import annotations", "")
    )
    assert outcome.ok, outcome.reason


def test_the_same_program_does_the_same_twice_and_sees_nothing_installed() -> None:
    assert run("raise ValueError(hash('abc'))").reason == run("raise ValueError(hash('abc'))").reason
    assert run("import pytest").reason.startswith("ModuleNotFoundError")
    assert run("input()").reason.startswith("EOFError")


@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "import time; time.sleep(1000)",
        "import signal\nfor n in (2, 14, 15): signal.signal(n, signal.SIG_IGN)\nwhile True: pass",
        "while True:\n    try:\n        while True: pass\n    except BaseException:\n        pass",
    ],
    ids=["loop", "sleep", "ignores signals", "catches everything"],
)
def test_programs_without_end_are_ended(program: str) -> None:
    start = time.monotonic()
    outcome = sandbox.run(program, timeout_s=0.3)
    assert not outcome.ok and outcome.reason == "ran longer than 0.3 s"
    assert time.monotonic() - start < 60


def test_allocating_without_end_stops_at_the_limit() -> None:
    assert run("held = []\nwhile len(held) < 100: held.append(bytearray(1 << 24))").reason == "MemoryError"
    caught = run("held = []\ntry:\n    while len(held) < 100: held.append(bytearray(1 << 24))\nexcept MemoryError: pass\nassert len(held) < 16")
    assert caught.ok, caught.reason


@of(SECCOMP, AUDIT)
def test_no_connection_is_made(layers: tuple[str, ...], held: tuple[str, ...]) -> None:
    need(layers, held)
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(("127.0.0.1", 0))
        port, other = listener.getsockname()[1], datagrams.getsockname()[1]
        outcome = run(
            f"""
            import socket, urllib.request
            attempt(lambda: socket.create_connection(("127.0.0.1", {port}), 5))
            attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", {other})))
            attempt(lambda: urllib.request.urlopen("http://127.0.0.1:{port}", timeout=2))
            {LIBC if "audit" not in layers else "libc = None"}
            if libc:
                import struct
                fd = libc.socket(2, 1, 0)
                libc.connect(fd, struct.pack("=H", 2) + struct.pack("!HI8x", {port}, 0x7F000001), 16)
                assert fd == -1
            """,
            layers,
        )
        assert outcome.ok, outcome.reason
        for ours in (listener, datagrams):
            ours.settimeout(0.1)
        with pytest.raises(TimeoutError):
            listener.accept()
        with pytest.raises(TimeoutError):
            datagrams.recv(1)


@of(LANDLOCK, AUDIT)
def test_files_outside_stay_as_they_are(layers: tuple[str, ...], held: tuple[str, ...], tmp_path: Path) -> None:
    need(layers, held)
    folder = tmp_path / "folder"
    folder.mkdir()
    victim = folder / "victim.txt"
    victim.write_text("still here")
    victim.chmod(0o640)
    outcome = run(
        f"""
        import os, pathlib, shutil
        victim, folder = {str(victim)!r}, {str(folder)!r}
        assert attempt(os.listdir, folder) is None or "audit" in {layers!r}
        for action in (os.remove, os.unlink, os.rmdir, pathlib.Path.unlink):
            attempt(action, pathlib.Path(victim))
        attempt(os.rename, victim, victim + ".moved")
        attempt(os.replace, victim, "here")
        attempt(shutil.rmtree, folder)
        attempt(shutil.move, victim, "here")
        attempt(os.symlink, victim, folder + "/link")
        attempt(os.link, victim, folder + "/hard")
        attempt(os.mkdir, folder + "/new")
        attempt(os.truncate, victim, 0)
        attempt(lambda: open(victim, "a").write("x"))
        attempt(lambda: os.write(os.open(victim, os.O_RDWR | os.O_TRUNC), b"x"))
        if "audit" not in {layers!r} or len({layers!r}) == 4:
            attempt(os.chmod, victim, 0)
        assert attempt(lambda: open(victim).read()) is None
        if "audit" not in {layers!r}:
            {LIBC}
            libc.unlink(victim.encode())
            libc.truncate(victim.encode(), 0)
            libc.rename(victim.encode(), b"here")
        """,
        layers,
    )
    assert outcome.ok, outcome.reason
    assert os.listdir(folder) == ["victim.txt"]
    if layers == LANDLOCK:
        victim.chmod(0o640)  # the one thing landlock does not know; seccomp does
    assert victim.stat().st_mode & 0o777 == 0o640
    assert victim.read_text() == "still here"


@of(SECCOMP)
def test_owners_modes_and_times_of_files_stay(layers: tuple[str, ...], held: tuple[str, ...], tmp_path: Path) -> None:
    need(layers, held)
    victim = tmp_path / "victim.txt"
    victim.write_text("x")
    before = victim.stat()
    changes = "(('chmod', (0,)), ('chown', (1, 1)), ('utime', ((1, 1),)))"
    run(f"import os\nfor name, more in {changes}: attempt(getattr(os, name), {str(victim)!r}, *more)", layers)
    after = victim.stat()
    assert (after.st_mode, after.st_uid, after.st_mtime) == (before.st_mode, before.st_uid, before.st_mtime)


@of(SECCOMP, AUDIT)
def test_no_process_is_started(layers: tuple[str, ...], held: tuple[str, ...]) -> None:
    need(layers, held)
    outcome = run(
        """
        import os, subprocess, sys
        def fork():
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            return pid
        for _ in range(20):
            assert attempt(fork) is None
        assert attempt(subprocess.run, ["true"]) is None
        assert attempt(os.posix_spawn, "/bin/true", ["true"], {}) is None
        assert attempt(os.system, "exit 0") != 0
        assert attempt(os.execv, "/bin/true", ["true"]) is None
        """,
        layers,
    )
    assert outcome.ok, outcome.reason


def test_no_thread_is_started(held: tuple[str, ...]) -> None:
    need(SECCOMP, held)  # Python says nothing about threads before 3.12
    assert not run("import threading; threading.Thread(target=print).start()", SECCOMP).ok


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("ending", ["", "while True: pass", "os._exit(0)"], ids=["done", "loop", "exit"])
def test_children_of_a_program_that_could_fork_are_killed(ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    groups, start = [], sandbox._start

    def spy(folder: str) -> subprocess.Popen[bytes]:
        groups.append(start(folder))
        return groups[0]

    monkeypatch.setattr(sandbox, "_start", spy)
    run(
        f"import os, time\nfor _ in range(3):\n    if attempt(os.fork) == 0:\n        time.sleep(30)\n        os._exit(0)\n{ending}",
        ("limits",),
        0.5,
    )
    deadline = time.monotonic() + 20
    while living(groups[0].pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert living(groups[0].pid) == []


def living(group: int) -> list[str]:
    """The processes of a group that are not dead, whether or not somebody has asked after them."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of_group = entry.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(of_group) == group and state not in "ZX":
            found.append(entry.parent.name)
    return found


@of(("limits",), LANDLOCK, AUDIT)
def test_the_disk_is_not_filled(layers: tuple[str, ...], held: tuple[str, ...], tmp_path: Path) -> None:
    need(layers, held)
    outcome = run(
        f"""
        import os
        def fill(path):
            with open(path, "wb", buffering=0) as file:
                for _ in range(8):
                    file.write(b"x" * (1 << 20))
        for folder in (".", {str(tmp_path)!r}, "/dev/shm"):
            for i in range(4):
                path = os.path.join(folder, f"draftwise-test-{{os.getpid()}}-{{i}}")
                attempt(fill, path)
                assert not os.path.exists(path) or os.path.getsize(path) == 0
                attempt(os.remove, path)
        """,
        layers,
    )
    assert outcome.ok, outcome.reason
    assert list(tmp_path.iterdir()) == []


def test_what_it_prints_goes_nowhere(capfd: pytest.CaptureFixture[str]) -> None:
    outcome = run("import os, sys\nfor _ in range(50): print('x' * 1_000_000); print('y' * 1_000_000, file=sys.stderr)\nos.write(1, b'z' * 10 ** 7)")
    assert outcome.ok, outcome.reason
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("layers", [sandbox.LAYERS, ("limits",)], ids=["all", "limits"])
def test_only_the_last_line_says_passed(layers: tuple[str, ...]) -> None:
    for early in ("import sys; sys.exit(0)", "raise SystemExit", "import os; os._exit(0)"):
        outcome = run(f"{early}\nassert False", layers)
        assert not outcome.ok and "before its end" in outcome.reason.replace("exit before its end", "before its end")
    everywhere = "import os\nfor fd in range(3, 64): attempt(os.write, fd, TEXT)\nos._exit(0)"
    assert not run('TEXT = b\'{"ok": true, "reason": "", "token": ""}\\n\'\n' + everywhere, layers).ok
    assert not run("TEXT = b'x' * 60_000\n" + everywhere, layers).ok
    assert not run("import os; os.closerange(0, 64)", layers).ok


@of(SECCOMP, AUDIT)
def test_the_parent_gets_no_signal(layers: tuple[str, ...], held: tuple[str, ...]) -> None:
    need(layers, held)
    got: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: got.append(number))
    try:
        outcome = run(
            f"""
            import os, signal
            parent = os.getppid()
            assert parent == {os.getpid()}
            attempt(os.kill, parent, signal.SIGUSR1)
            attempt(os.killpg, os.getpgid(parent), signal.SIGUSR1) if {os.getpgid(0) == os.getpid()} else None
            if "audit" not in {layers!r}:
                {LIBC}
                libc.kill(parent, {int(signal.SIGUSR1)})
                libc.syscall({234 if os.uname().machine == "x86_64" else 131}, parent, parent, {int(signal.SIGUSR1)})
            """,
            layers,
        )
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert outcome.ok, outcome.reason
    assert got == []


@of(LANDLOCK, AUDIT)
def test_the_environment_and_files_of_the_parent_are_not_read(
    layers: tuple[str, ...], held: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need(layers, held)
    monkeypatch.setenv("DRAFTWISE_SECRET", "secret")
    secret = tmp_path / "secret"
    secret.write_text("secret")
    outcome = run(
        f"""
        import os
        assert not os.environ and os.listdir() == []
        for path in (f"/proc/{{os.getppid()}}/environ", f"/proc/{{os.getppid()}}/cmdline", {str(secret)!r}, "/etc/passwd"):
            for read in (lambda: open(path).read(), lambda: os.open(path, os.O_RDONLY)):
                assert attempt(read) is None, path
        """,
        layers,
    )
    assert outcome.ok, outcome.reason


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_a_program_does_not_outlive_a_bench_that_is_killed() -> None:
    command = [sys.executable, "-c", "from draftwise.bench import sandbox; sandbox.run('while True: pass', timeout_s=60)"]
    with subprocess.Popen(command) as bench:
        found: list[str] = []
        deadline = time.monotonic() + 60
        while not found and time.monotonic() < deadline:
            found = Path(f"/proc/{bench.pid}/task/{bench.pid}/children").read_text().split()
            time.sleep(0.05)
        assert found
        time.sleep(0.5)  # past its first steps
        bench.kill()
    deadline = time.monotonic() + 5
    while living(int(found[0])) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert living(int(found[0])) == []


def test_what_cannot_be_run_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="at least 64 MiB"):
        sandbox.run("", memory_mb=1)
    with pytest.raises(ValueError, match="more than 0 s"):
        sandbox.run("", timeout_s=0)
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(OSError, match=r"did not start \(exited with 1\)"):
        sandbox.run("")
    monkeypatch.setattr(os, "name", "nt")
    with pytest.raises(ValueError, match="Linux and macOS only"):
        sandbox.run("")
