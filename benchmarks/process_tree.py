"""What a gateway costs, seen from outside: its process with all that it started, and the core they run on.

One rule: who starts a process here ends it and its children, whatever happens in between. It knows no gateway.
"""

import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TypeVar

import psutil

_END_BOUND_S = 10.0
_SAID_BYTES = 2_000

_Told = TypeVar("_Told")


def cores() -> tuple[int, int] | None:
    """Give a core for gateways and one for all else; None where nothing can be kept to a core, or there is only one."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    allowed = sorted(os.sched_getaffinity(0))
    return (allowed[-1], allowed[0]) if len(allowed) > 1 else None


@contextmanager
def kept_to(core: int | None) -> Iterator[None]:
    """Keep this process to one core, and so whatever it starts in the block."""
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def running(
    command: Sequence[str | Path], folder: Path, *, core: int | None, environ: Mapping[str, str] | None = None
) -> Iterator["ProcessTree"]:
    """Run a command in a folder until the block is left."""
    with tempfile.TemporaryFile() as said:
        with kept_to(core):
            # Its own session, so that its children can be ended with it, also those that it has left behind.
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT, cwd=folder,
                env={**os.environ, **(environ or {})}, start_new_session=True,
            )  # fmt: skip
        tree = ProcessTree(child, said)
        try:
            yield tree
        finally:
            tree.end()


class ProcessTree:
    """A process and all that it started."""

    def __init__(self, child: subprocess.Popen[bytes], said: IO[bytes]) -> None:
        self._child = child
        self._said = said

    def cpu_s(self) -> float:
        """Give the processor time of all, user and system, since they began."""
        return sum(times.user + times.system for times in self._each(psutil.Process.cpu_times))

    def memory_mib(self) -> float:
        """Give the memory of all, what they share counted once (PSS); where there is no such figure, the sum of RSS."""
        pages = self._each(psutil.Process.memory_full_info)
        return sum(getattr(each, "pss", each.rss) for each in pages) / 2**20

    def open_files(self) -> int:
        """Give how many files and sockets all have open."""
        return sum(self._each(psutil.Process.num_fds))

    def has_ended(self) -> bool:
        return self._child.poll() is not None

    def said(self) -> str:
        """Give the end of what it has written."""
        size_bytes = os.fstat(self._said.fileno()).st_size
        start = max(0, size_bytes - _SAID_BYTES)
        return os.pread(self._said.fileno(), _SAID_BYTES, start).decode(errors="replace")

    def end(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self._child.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self._child.wait(_END_BOUND_S)
                # The first has gone; a child that ignored the signal has not.
        self._child.wait()

    def _each(self, ask: Callable[[psutil.Process], _Told]) -> list[_Told]:
        first = psutil.Process(self._child.pid)
        told = []
        for member in (first, *first.children(recursive=True)):
            with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                told.append(ask(member))
        return told
