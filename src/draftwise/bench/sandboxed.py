"""What runs inside the process of `draftwise.bench.sandbox`: it shuts the doors, then runs the program that came on stdin.

Only the standard library is used and nothing of this package: the file is handed to a bare interpreter as text. Each layer is a function that
takes the job and says whether it is in force; on a system without it the others carry on.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import resource
import signal
import struct
import sys
import types
from collections.abc import Callable
from typing import Any, NoReturn

_READABLE = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/local/lib", "/nix/store", "/usr/share/zoneinfo", "/etc/localtime", "/etc/ld.so.cache")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")


def main() -> NoReturn:
    """Reads the job, {"program", "token", "layers", "cpu_s", "memory"}, and answers with two lines: {"layers": those in force} before the
    program runs and {"token", "ok", "reason"} after it. The program itself has neither the job's stdin nor the answers' stdout."""
    job = json.loads(sys.stdin.buffer.read())
    report = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    os.environ.clear()
    layers: dict[str, Callable[[dict[str, Any]], bool]] = {"limits": _limits, "landlock": _landlock, "seccomp": _seccomp, "audit": _audit}
    held = [name for name, close in layers.items() if name in job["layers"] and close(job)]
    importlib.import_module("decimal")  # if the doors are so shut that Python cannot read its own library, say nothing and be noticed
    _tell(report, {"layers": held})
    reason = _run(job["program"])
    _tell(report, {"token": job["token"], "ok": reason is None, "reason": reason or ""})
    os._exit(0)  # no farewell of the program's: atexit, __del__


def _run(program: str) -> str | None:
    """Why the program did not come to its end, or None. It is a module of its own, and no script: what stands under ``__main__`` stays out."""
    module = types.ModuleType("program")
    sys.modules[module.__name__] = module
    try:
        exec(compile(program, "<program>", "exec"), module.__dict__)
    except SystemExit:
        return "it called exit before its end"
    except BaseException as error:
        with contextlib.suppress(BaseException):  # str() of an exception of its own may do anything
            return f"{type(error).__name__}: {error}".rstrip(": ")[:300]
        return "an exception that cannot be shown"
    return None


def _tell(fd: int, line: dict[str, Any]) -> None:
    os.write(fd, json.dumps(line).encode() + b"\n")


def _limits(job: dict[str, Any]) -> bool:
    """Limits that the kernel holds for any user, root too, except on processes: those root may always start (seccomp forbids them)."""
    wanted = {"CPU": job["cpu_s"], "AS": job["memory"], "FSIZE": 0, "NPROC": 0, "NOFILE": 64, "CORE": 0}
    held = []
    for name, limit in wanted.items():
        with contextlib.suppress(ValueError, OSError, AttributeError):
            number = getattr(resource, "RLIMIT_" + name)
            hard = resource.getrlimit(number)[1]
            limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
            resource.setrlimit(number, (limit, limit))
            held.append(name)
    with contextlib.suppress(OSError, AttributeError):
        _prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: not to outlive the bench
    return len(held) == len(wanted)


def _prctl(*arguments: Any) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(*arguments, *[0] * (5 - len(arguments))):
        raise OSError(ctypes.get_errno(), "prctl")


def _readable() -> list[str]:
    """What the interpreter itself has to read while a program runs: its library and the shared libraries below it."""
    library = [os.path.join(sys.base_prefix, "lib"), *filter(None, sys.path)]
    return [os.path.realpath(path) for path in (*library, *_READABLE, *_DEVICES, os.getcwd()) if os.path.exists(path)]


def _landlock(job: dict[str, Any]) -> bool:
    """The file system is closed: the interpreter's library can be read, /dev/null written, and nothing else opened, made, moved or removed. From
    Linux 6.7 on TCP is closed as well, from 6.12 on signals to other processes. See landlock(7)."""
    if not sys.platform.startswith("linux"):
        return False
    call = ctypes.CDLL(None, use_errno=True).syscall
    abi = call(444, None, 0, 1)  # landlock_create_ruleset, asked for its version
    if abi < 1:
        return False
    write, read, listing = 1 << 1, 1 << 2, 1 << 3
    every = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(abi, 16)) - 1  # the rights to files that this version knows
    rules = struct.pack("QQQ", every, 3, 3)[: {1: 8, 2: 8, 3: 8, 4: 16, 5: 16}.get(abi, 24)]  # files; TCP bind, connect; sockets, signals
    ruleset = call(444, rules, len(rules), 0)
    for path in _readable():
        right = read | listing if os.path.isdir(path) else read | write if path == "/dev/null" else read
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        call(445, ruleset, 1, struct.pack("=Qi", right, fd), 0)  # landlock_add_rule, LANDLOCK_RULE_PATH_BENEATH
        os.close(fd)
    _prctl(38, 1)  # PR_SET_NO_NEW_PRIVS, without which an ordinary user may not go on
    held = call(446, ruleset, 0) == 0  # landlock_restrict_self
    os.close(ruleset)
    return bool(held)


# System calls that a program has no use for: name, number on x86_64, number on aarch64 ("-": there is none).
_REFUSED = """
socket 41 198, socketpair 53 199, fork 57 -, vfork 58 -, clone 56 220, clone3 435 435, execve 59 221, execveat 322 281,
kill 62 129, tkill 200 130, tgkill 234 131, rt_sigqueueinfo 129 138, rt_tgsigqueueinfo 297 240, pidfd_send_signal 424 424, pidfd_getfd 438 438,
ptrace 101 117, process_vm_readv 310 270, process_vm_writev 311 271, process_madvise 440 440, migrate_pages 256 238, move_pages 279 239,
setsid 112 157, setpgid 109 154, setpriority 141 140, sched_setparam 142 118, sched_setscheduler 144 119, sched_setaffinity 203 122,
sched_setattr 314 274, ioprio_set 251 30, setrlimit 160 164, prlimit64 302 261,
chmod 90 -, fchmod 91 52, fchmodat 268 53, fchmodat2 452 452, chown 92 -, lchown 94 -, fchown 93 55, fchownat 260 54, utime 132 -, utimes 235 -,
futimesat 261 -, utimensat 280 88, setxattr 188 5, lsetxattr 189 6, fsetxattr 190 7, setxattrat 463 463, removexattr 197 14, lremovexattr 198 15,
fremovexattr 199 16, removexattrat 466 466, truncate 76 45, open_by_handle_at 304 265,
shmget 29 194, msgget 68 186, semget 64 190, mq_open 240 180, mq_unlink 241 181, keyctl 250 219, add_key 248 217, request_key 249 218,
mount 165 40, umount2 166 39, pivot_root 155 41, chroot 161 51, unshare 272 97, setns 308 268, fsopen 430 430, fsmount 432 432, move_mount 429 429,
open_tree 428 428, mount_setattr 442 442, reboot 169 142, kexec_load 246 104, kexec_file_load 320 294, init_module 175 105, finit_module 313 273,
delete_module 176 106, swapon 167 224, swapoff 168 225, acct 163 89, quotactl 179 60, settimeofday 164 170, clock_settime 227 112,
clock_adjtime 305 266, adjtimex 159 171, sethostname 170 161, setdomainname 171 162, syslog 103 116, vhangup 153 58, iopl 172 -, ioperm 173 -,
bpf 321 280, perf_event_open 298 241, userfaultfd 323 282, fanotify_init 300 262, io_uring_setup 425 425
"""


def _seccomp(job: dict[str, Any]) -> bool:
    """The calls above end with EPERM: no process, thread, socket, signal or change of a file's owner, mode or time, and nothing of an
    administrator's. See seccomp(2); the filter is a program of struct sock_filter (16-bit code, two 8-bit jumps, 32-bit operand)."""
    column, architecture = {"x86_64": (1, 0xC000003E), "aarch64": (2, 0xC00000B7)}.get(os.uname().machine, (0, 0))
    if not column or not sys.platform.startswith("linux") or sys.maxsize < 1 << 32:
        return False
    refused = [int(row.split()[column]) for row in _REFUSED.split(",") if row.split()[column] != "-"]
    load, equal, at_least, answer = 0x20, 0x15, 0x35, 0x06
    refuse, kill, allow = (answer, 0, 0, 0x00050001), (answer, 0, 0, 0x80000000), (answer, 0, 0, 0x7FFF0000)
    steps = [(load, 0, 0, 4), (equal, 1, 0, architecture), kill, (load, 0, 0, 0)]  # numbers of another architecture mean other calls
    for test, number in [(at_least, 1 << 30), *((equal, number) for number in refused)]:  # from 2^30 on: x32
        steps += [(test, 0, 1, number), refuse]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in [*steps, allow]))
    try:
        _prctl(38, 1)
        _prctl(22, 2, struct.pack("HP", len(steps) + 1, ctypes.addressof(code)))  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
    except OSError:
        return False
    return True


_HARMLESS = ("os.listdir", "os.scandir", "os.walk", "os.fwalk", "os.putenv", "os.unsetenv", "os.chdir", "os.fchdir")
_FAMILIES = ("os", "shutil", "subprocess", "socket", "signal", "resource", "fcntl", "ctypes", "sqlite3", "pty", "syslog", "_thread", "webbrowser")


def _audit(job: dict[str, Any]) -> bool:
    """Python's own view of the same rules (sys.addaudithook): the layer that is there on every system. What C code does by itself passes it
    by, and so does the little of Python that raises no event: os.mkfifo, and threads before Python 3.12."""
    readable = _readable()
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not isinstance(path, int) and not _may_open(path, bool(flags & writing), readable):
                raise PermissionError(f"the sandbox does not open {path!r}")
        elif event.split(".")[0] in _FAMILIES and event not in _HARMLESS:
            raise PermissionError(f"the sandbox refuses {event}")

    sys.addaudithook(hook)
    return True


def _may_open(path: str | bytes, writes: bool, readable: list[str]) -> bool:
    real = os.path.realpath(os.fsdecode(path))
    if writes:
        return real == os.devnull
    return any(real == root or real.startswith(root.rstrip("/") + "/") for root in readable)


if __name__ == "__main__":
    main()
