"""Owners: the name under which a process holds things in a store, and whether it still lives.

One rule: an owner that may live counts as alive. To be wrong that way delays what it held until it expires; to be
wrong the other way would hand it out twice.
"""

import itertools
import os
import re
import socket

import psutil

_managers = itertools.count(1)

# Start times are read to a hundredth of a second and may be rounded differently twice.
_START_TOLERANCE_MS = 15


def owner_name() -> str:
    """Name this process: its host, id and start, and a number that tells the managers of one process apart."""
    return f"{_host()}:{os.getpid()}:{_start_ms(psutil.Process())}:{next(_managers)}"


def process_of(name: str) -> str:
    """Give the process of that name for people: its id, and its host where that is another."""
    host, pid, *_ = (*name.split(":"), "")
    return f"process {pid}" if host == _host() else f"process {pid} on {host}"


def owner_is_alive(name: str) -> bool:
    """Whether the process of that name may still run.

    Of another host's processes nothing is known here: they count as alive, and what they hold ends by its own expiry.
    So do names that `owner_name` did not give.
    """
    match name.split(":"):
        case [host, pid, start_ms, _manager] if host == _host() and pid.isdecimal() and start_ms.isdecimal():
            return _runs(int(pid), int(start_ms))
    return True


def _runs(pid: int, start_ms: int) -> bool:
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:  # it ended, and its parent has not noticed
            return False
        return abs(_start_ms(process) - start_ms) <= _START_TOLERANCE_MS
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def _start_ms(process: psutil.Process) -> int:
    # psutil adds the time of the boot, which moves whenever the clock is set; without it the figure stands still.
    since_boot_s: float = process.create_time() - psutil.boot_time()
    return round(since_boot_s * 1000)


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname()) or "localhost"
