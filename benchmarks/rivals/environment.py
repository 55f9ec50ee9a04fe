"""Where rivals live: in the Python that runs, or, when they need a newer one, in an environment made for them.

One rule: what cannot be had is a `RivalMissingError` with the reason, which the row's note repeats; nothing is guessed.
"""

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

_INSTALL_BOUND_S = 180
_NEWER = ("python3.14", "python3.13", "python3.12")


class RivalMissingError(Exception):
    """A rival cannot be run on this machine."""


@cache
def python_with(module: str, requirement: str, at_least: tuple[int, int]) -> Path:
    """Give a Python that can import a rival; made beside this one (`.venv/rivals`) if this one is too old."""
    here, apart = Path(sys.executable), Path(sys.prefix) / "rivals"
    apart_python = apart / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    for python in (here, apart_python):
        if _runs(python, f"import {module}"):
            return python
    if sys.version_info >= at_least:
        raise RivalMissingError(f"{requirement} is not installed; install the extra `bench`")
    version = ".".join(map(str, at_least))
    newer = next(
        (python for python in _candidates() if _runs(python, f"import ensurepip, sys; {_check(at_least)}")), None
    )
    if newer is None:
        raise RivalMissingError(f"{requirement} needs Python {version} or newer, and none was found")
    try:
        if not apart_python.exists():
            _run(newer, "-m", "venv", str(apart))
        _run(apart_python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", requirement, "uvloop")
    except (subprocess.SubprocessError, OSError) as error:
        raise RivalMissingError(f"{requirement} could not be installed: {error}") from error
    return apart_python


def _candidates() -> list[Path]:
    on_path = [Path(found) for found in map(shutil.which, _NEWER) if found]
    # A version manager may keep what it does not put on the path.
    kept = sorted(Path.home().glob(".pyenv/versions/3.*/bin/python"), reverse=True)
    return [*on_path, *kept]


def _check(at_least: tuple[int, int]) -> str:
    return f"sys.exit(sys.version_info < {at_least})"


def _runs(python: Path, code: str) -> bool:
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=_INSTALL_BOUND_S)
