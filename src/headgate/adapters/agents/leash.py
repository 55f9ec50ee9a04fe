"""The leash: holds a command and all that it starts, and lets nothing of it outlive the runner.

One rule: when standard input closes, whoever closed it, everything ends: a runner that was killed with -9 cannot say
goodbye, but the kernel closes its pipes. Run as a script, from the standard library alone, so that it starts fast; it
imports nothing of Headgate and takes no decision about jobs.

    python -I -S leash.py GRACE_S MOST_OUTPUT_BYTES LOCK_FILE COMMAND [ARGUMENT...]

It ends as the command ends: with its exit code, or by its signal. 126 and 127 mean that the command could not be run.
"""

import ctypes
import fcntl
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from types import FrameType

__all__: list[str] = []

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_OUTPUT_FDS = (1, 2)
# A flood fills a disk at gigabytes a second; a thousand leashes that look every second cost 5 % of a core.
_LOOK_EVERY_S = 1.0
_LOCK_EVERY_S = 0.05
_KILL_WITHIN_S = 5.0
_CANNOT_RUN, _NOT_FOUND, _STILL_AT_WORK = 126, 127, 125


def main(arguments: list[str]) -> int:
    """Run the command to its end, or to the end of the pipe; gives the status as `os.wait` does."""
    grace_s, most_output_bytes = float(arguments[0]), int(arguments[1])
    prctl = _prctl()
    # Whatever the command leaves behind becomes a child of this process, in whatever session it hid.
    if prctl is not None:
        prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    wake = _wake_on_signals()
    if not _lock(arguments[2], grace_s + _KILL_WITHIN_S):
        sys.stderr.write("headgate: another attempt of this job is still at work in its folder\n")
        return _STILL_AT_WORK << 8
    if _pipe_closed(0):
        return 0
    # The environment is the command's: what the interpreter itself needs came as flags.
    child = os.fork()
    if child == 0:
        _become(arguments[3:], prctl)
    with suppress(OSError):  # the child does the same; whoever comes second may be too late
        os.setpgid(child, child)
    status, why = _wait(child, wake, most_output_bytes)
    family = _Family(child, sees_strays=prctl is not None)
    if family.lives():
        family.signal(signal.SIGTERM)
        family.wait(grace_s, wake)
        kill_until_s = time.monotonic() + _KILL_WITHIN_S
        while family.lives() and time.monotonic() < kill_until_s:
            family.signal(signal.SIGKILL)
            family.wait(_LOCK_EVERY_S, wake)
    return why or (family.status if status is None else status)


def _prctl() -> "ctypes._NamedFuncPointer | None":
    return ctypes.CDLL(None).prctl if sys.platform == "linux" else None


def _wake_on_signals() -> int:
    """Give a descriptor that is readable after each signal; a handler is set, not SIG_IGN, which commands inherit."""
    readable, writable = os.pipe()
    os.set_blocking(readable, False)
    os.set_blocking(writable, False)
    signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    for each in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(each, _noted)
    return readable


_asked_to_end = False


def _noted(number: int, frame: FrameType | None) -> None:
    global _asked_to_end  # noqa: PLW0603 - a signal's handler has nowhere else to leave word
    del frame
    _asked_to_end = _asked_to_end or number != signal.SIGCHLD


def _lock(path: str, within_s: float) -> bool:
    """Take the folder's lock, which the kernel frees when its holder dies: two attempts never share a folder."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    give_up_s = time.monotonic() + within_s
    while True:
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        if time.monotonic() >= give_up_s or _pipe_closed(_LOCK_EVERY_S):
            return False


def _pipe_closed(within_s: float) -> bool:
    readable, _, _ = select.select([0], [], [], within_s)
    return bool(readable) and not os.read(0, 1)


def _become(command: list[str], prctl: "ctypes._NamedFuncPointer | None") -> None:
    """Turn the forked child into the command; returns never."""
    try:
        os.setpgid(0, 0)
        if prctl is not None:
            # Should this leash itself be killed, the kernel ends at least the command.
            prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        for ignored_by_python in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(ignored_by_python, signal.SIG_DFL)
        os.execvp(command[0], command)  # noqa: S606 - there is no shell, by intention
    except OSError as error:
        os.write(2, f"headgate: cannot run {command[0]}: {error.strerror}\n".encode())
        os._exit(_NOT_FOUND if isinstance(error, FileNotFoundError) else _CANNOT_RUN)


def _wait(child: int, wake: int, most_output_bytes: int) -> tuple[int | None, int]:
    """Wait for the command or for the order to end; gives its status, and the status that goes before it if any."""
    while True:
        readable, _, _ = select.select([0, wake], [], [], _LOOK_EVERY_S)
        if wake in readable:
            _drain(wake)
        for pid, status in _reaped():
            if pid == child:
                return status, 0
        if _asked_to_end or (0 in readable and not os.read(0, 1)):
            return None, 0
        if sum(os.fstat(each).st_size for each in _OUTPUT_FDS) > most_output_bytes:
            return None, int(signal.SIGXFSZ)


def _reaped() -> Iterator[tuple[int, int]]:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid, status


def _drain(wake: int) -> None:
    with suppress(BlockingIOError):
        os.read(wake, 4096)


class _Family:
    """The command's process group, and on Linux every other descendant too."""

    def __init__(self, leader: int, *, sees_strays: bool) -> None:
        self._leader = leader
        self._sees_strays = sees_strays
        self.status = 0

    def lives(self) -> bool:
        """Tell whether any of it is left, and reap those that ended."""
        for pid, status in _reaped():
            if pid == self._leader:
                self.status = status
        if self._sees_strays:
            # Orphans are handed to this process, so that "no children" means "nobody".
            try:
                os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return False
            return True
        return self._send_group(0)

    def wait(self, within_s: float, wake: int) -> None:
        """Return when all of it has ended, or after the time."""
        until_s = time.monotonic() + within_s
        while self.lives() and (left_s := until_s - time.monotonic()) > 0:
            # The end of a child wakes; that of another's child, where strays are not seen, has to be looked for.
            select.select([wake], [], [], left_s if self._sees_strays else min(left_s, _LOCK_EVERY_S))
            _drain(wake)

    def signal(self, number: int) -> None:
        """Signal all of it."""
        self._send_group(number)
        if self._sees_strays:
            for pid in _descendants(os.getpid()):
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)

    def _send_group(self, number: int) -> bool:
        try:
            os.killpg(self._leader, number)
        except PermissionError:
            return True
        except ProcessLookupError:
            return False
        return True


def _descendants(ancestor: int) -> list[int]:
    """Give all processes below one, from /proc, since nothing else names them on every kernel."""
    children: dict[int, list[int]] = {}
    # Not by pathlib: it would add 1.1 MB to each of a thousand leashes.
    for entry in os.listdir("/proc"):  # noqa: PTH208 - as above
        if entry.isdigit():
            with suppress(OSError), open(f"/proc/{entry}/stat", "rb") as stat:  # noqa: PTH123 - as above
                # The name of a program, in parentheses, may itself hold blanks and parentheses.
                fields = stat.read().rpartition(b")")[2].split()
                children.setdefault(int(fields[1]), []).append(int(entry))
    found: list[int] = []
    unseen = [ancestor]
    while unseen:
        below = children.get(unseen.pop(), [])
        found += below
        unseen += below
    return found


def _end_as(status: int) -> None:
    """End this process as the command ended."""
    sys.stderr.flush()
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with suppress(OSError):  # SIGKILL has no handler to reset
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 1)


if __name__ == "__main__":
    _end_as(main(sys.argv[1:]))
