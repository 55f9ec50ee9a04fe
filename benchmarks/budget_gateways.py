"""Gateways of row B4 as processes that share one file: Headgate's, and the baseline that checks first and counts after.

One rule: each kind is started, killed and asked in the same way, so that a scenario knows no difference.
"""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Self

from benchmarks.headgate_processes import HEADGATE, KEY_VARIABLE, ProcessError, ask_headgate

_END_WITHIN_S = 20
_NO_BOUND = 10**12


@dataclass(frozen=True, slots=True)
class Bounds:
    """The one limit of a scenario."""

    micro_usd: int | None = None
    tokens: int | None = None
    slots: int | None = None

    @property
    def limit(self) -> int:
        return next(amount for amount in (self.micro_usd, self.tokens, self.slots) if amount is not None)


class Gateways:
    """Some processes behind one another's back; the last ones are ended when the block is left."""

    def __init__(self, folder: Path, provider: str, bounds: Bounds) -> None:
        self.folder, self.provider, self.bounds = folder, provider, bounds
        self.urls: list[str] = []
        self._processes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def command(self) -> list[str]:
        raise NotImplementedError

    def counted_and_held(self) -> tuple[int, int]:
        """What counts as used, and what is still held, once every process has ended."""
        return 0, 0

    def start(self) -> None:
        process = subprocess.Popen(
            self.command(), stdout=subprocess.PIPE, text=True, env={**os.environ, KEY_VARIABLE: "sk-simulated"}
        )
        assert process.stdout is not None
        line = process.stdout.readline()
        self._processes.append(process)
        if " http://" not in line:
            raise ProcessError(f"{' '.join(self.command())} said {line!r}")
        self.urls.append(line.split(" serving ")[1].split()[0])

    def replace_one(self, chooser: Random) -> None:
        """End one with kill -9, and start another in its place."""
        dead = chooser.randrange(len(self._processes))
        self._processes[dead].kill()
        self._reap(self._processes.pop(dead))
        self.urls.pop(dead)
        self.start()

    def stop(self) -> None:
        for process in self._processes:
            process.send_signal(signal.SIGTERM)
        for process in self._processes:
            self._reap(process)
        self._processes, self.urls = [], []

    def _reap(self, process: subprocess.Popen[str]) -> None:
        try:
            process.wait(_END_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


class HeadgateGateways(Gateways):
    """`headgate serve` over one SQLite file."""

    def command(self) -> list[str]:
        config = self.folder / "headgate.toml"
        if not config.exists():
            config.write_text(self._config())
        return [*HEADGATE, "serve", "--config", str(config), "--listen", "127.0.0.1:0"]

    def counted_and_held(self) -> tuple[int, int]:
        (limit,) = ask_headgate(self.folder, "limits")["limits"]
        return limit["used"], limit["held"]

    def _config(self) -> str:
        bounds = self.bounds
        words: dict[str, float | None] = {"tokens_per_lifetime": bounds.tokens, "slots": bounds.slots}
        if bounds.micro_usd is not None:
            words["usd_per_lifetime"] = bounds.micro_usd / 1_000_000
        limits = "\n".join(f"{word} = {amount}" for word, amount in words.items() if amount is not None)
        return f"""
[store]
url = "sqlite:///headgate.sqlite"
[[account]]
name = "main"
provider = "anthropic"
base_url = "{self.provider}"
api_key = "env:{KEY_VARIABLE}"
[[price]]
model = "claude-*"
input = 3
output = 15
[[limit]]
scope = "account:main"
{limits}
"""


class CheckThenCountGateways(Gateways):
    """The baseline over one SQLite file."""

    def command(self) -> list[str]:
        bounds = (self.bounds.micro_usd, self.bounds.tokens, self.bounds.slots)
        numbers = [str(_NO_BOUND if bound is None else bound) for bound in bounds]
        file = str(self.folder / "counts.sqlite")
        return [sys.executable, "-m", "benchmarks.rivals.check_then_count", self.provider, file, *numbers]
