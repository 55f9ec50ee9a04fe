"""What SQLite and the file system complain about, in one line that names the file and the way out.

One rule: whoever reads the message can act without reading SQLite's manual. Our own mistakes are not translated.
"""

import errno
import sqlite3
from pathlib import Path

from headgate.core.errors import StoreError

# The low byte of an extended result code is the primary one (sqlite.org/rescode.html, section 2).
_PRIMARY = 0xFF

_BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})

_FULL = "the disk is full; free some space, what was acknowledged before is kept"

_WAYS_OUT: dict[int, str] = {
    sqlite3.SQLITE_FULL: _FULL,
    sqlite3.SQLITE_IOERR_SHMSIZE: _FULL,  # the index of the log, a file beside it, had no room to grow
    sqlite3.SQLITE_READONLY: "it cannot be written; give this user write permission on the file and on its folder",
    sqlite3.SQLITE_PERM: "it may not be opened; give this user permission on the file and on its folder",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened; check that its folder exists and that this user may write there",
    sqlite3.SQLITE_CORRUPT: "the database is damaged; stop Headgate, then restore a copy or move the file away",
    sqlite3.SQLITE_NOTADB: "this is no SQLite database; name another file, or move this one away",
    sqlite3.SQLITE_IOERR: "the disk failed to read or write; check the disk and the system's log",
    sqlite3.SQLITE_NOMEM: "there is no memory left for the database",
}

_OS_WAYS_OUT: dict[int, str] = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "this user's share of the disk is used up; free some space",
    errno.EROFS: "its file system is read-only; name a file elsewhere",
    errno.EACCES: "this user may not write there; give it permission on the folder, or name a file elsewhere",
    errno.EPERM: "this user may not write there; give it permission on the folder, or name a file elsewhere",
    errno.ENOTDIR: "a part of its path is a file and not a folder; name a file elsewhere",
    errno.EEXIST: "its folder is a file; name a file elsewhere",
}


def is_busy(error: sqlite3.Error) -> bool:
    """Whether another connection is in the way, so that trying again can help."""
    return _primary(error) in _BUSY


def explain(path: Path, error: sqlite3.Error) -> StoreError:
    """Say what is wrong with the database; raise it `from` the error."""
    way_out = _WAYS_OUT.get(_code(error)) or _WAYS_OUT.get(_primary(error))
    return StoreError(f"{path}: {way_out} ({error})" if way_out else f"{path}: the database failed: {error}")


def explain_locked(path: Path, waited_s: float) -> StoreError:
    """Say that another process does not let go of the database."""
    return StoreError(
        f"{path}: another process has kept the database locked for {waited_s:g} s; "
        "find it (fuser, lsof), let it finish or stop it, and try again"
    )


def explain_os(path: Path, error: OSError) -> StoreError:
    """Say why the file could not be made."""
    way_out = _OS_WAYS_OUT.get(error.errno or 0, "it cannot be made; name a file elsewhere")
    return StoreError(f"{path}: {way_out} ({error.strerror or error})")


def _primary(error: sqlite3.Error) -> int:
    return _code(error) & _PRIMARY


def _code(error: sqlite3.Error) -> int:
    # Errors of the module itself (a closed connection, a wrong thread) carry no code.
    return getattr(error, "sqlite_errorcode", 0)
