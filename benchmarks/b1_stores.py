"""Row B1: reserve and settle a call under four rates, per second, by store.

One rule: what is measured is what a call costs in the product: `runtime.reservations` over a store, the hold kept as
its own record, so that settling is exactly once. Rounds of Headgate and its rivals alternate; figures are medians.
"""

import asyncio
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import uvloop

from benchmarks.__main__ import Options, Result
from benchmarks.rivals.environment import RivalMissingError, python_with
from headgate.adapters.memory import MemoryLevelStore
from headgate.adapters.sqlite.stores import open_database
from headgate.core.amounts import Amounts, Demand, Dimension
from headgate.core.limits import Rate
from headgate.core.quota import Admitted
from headgate.ports import LevelStore
from headgate.runtime.reservations import Reservations

TITLE = "reserve + settle under 4 rates, pairs per second, beside token-throttle and limits (uvloop everywhere)"
TARGET = {"memory": 100_000, "sqlite, 1 caller": 10_000, "sqlite, 64 callers": 10_000}
RIVAL_SCRIPT = Path(__file__).parent / "rivals" / "quota_pairs.py"

_DIMENSIONS: tuple[Dimension, ...] = ("requests", "input_tokens", "output_tokens", "micro_usd")
LIMITS = tuple(
    Rate(
        f"account:main * {dimension} rate-60s",
        "account:main",
        dimension,
        10**12,
        60,
        10**12,
        charged_at_start=dimension == "requests",
    )
    for dimension in _DIMENSIONS
)
ASKED = Demand(Amounts(1, 1000, 500, 0, 300), Amounts(1, 1000, 4096, 0, 3000))
USED = Amounts(1, 900, 400, 0, 250)

Round = Callable[[], tuple[float, float]]
"""Runs one round and gives its pairs per second of the clock, and the CPU time of one in us."""


class WallClock:
    def now_s(self) -> float:
        return time.time()


@dataclass
class Measured:
    """One line of the table; `rival` names the line that it is compared with."""

    name: str
    run: Round
    rival: str | None = None
    figures: list[tuple[float, float]] = field(default_factory=list)

    @property
    def per_s(self) -> float:
        return median(per_s for per_s, _cpu_us in self.figures)

    @property
    def cpu_us(self) -> float:
        """Steadier than the clock where others share the cores."""
        return median(cpu_us for _per_s, cpu_us in self.figures)


def run(options: Options) -> Result:
    rounds = 3 if options.quick else 9
    with ExitStack() as stack, tempfile.TemporaryDirectory(prefix="headgate-b1-") as folder:
        lines = [
            Measured("memory", in_memory(20_000), "token-throttle"),
            Measured("sqlite, 1 caller", in_file(Path(folder) / "one.db", 5_000, 1), "token-throttle, sqlite"),
            Measured("sqlite, 64 callers", in_file(Path(folder) / "many.db", 16_000, 64), "token-throttle, sqlite"),
        ]
        missing = add_rivals(lines, stack, folder)
        for _ in range(rounds):
            for line in lines:
                line.figures.append(line.run())
    show(lines, missing, options)
    per_s = {line.name: round(line.per_s) for line in lines}
    return Result(
        headgate={name: per_s[name] for name in TARGET},
        rival={name: figure for name, figure in per_s.items() if name not in TARGET},
        target=TARGET,
        met=all(per_s[name] >= target for name, target in TARGET.items()),
        note="; ".join([*missing, f"medians of {rounds} alternating rounds", cpu_note(lines)]),
    )


def add_rivals(lines: list[Measured], stack: ExitStack, folder: str) -> list[str]:
    """Add the rivals that can be run here; give why the others cannot."""
    missing = []
    for name, module, requirement, at_least, pairs in (
        ("token-throttle", "token_throttle", "token-throttle==14.*", (3, 12), 400),
        ("token-throttle, sqlite", "token_throttle", "token-throttle==14.*", (3, 12), 200),
        ("limits", "limits", "limits>=5", (3, 10), 10_000),
    ):
        try:
            python = python_with(module, requirement, at_least)
        except RivalMissingError as error:
            missing.append(str(error))
            continue
        command = [str(python), str(RIVAL_SCRIPT), name.replace(", ", "-"), f"{folder}/{module}.db"]
        lines.append(Measured(name, stack.enter_context(rival(command, pairs))))
    return list(dict.fromkeys(missing))


def cpu_note(lines: list[Measured]) -> str:
    return "CPU us per pair: " + ", ".join(f"{line.name} {line.cpu_us:.1f}" for line in lines)


def show(lines: list[Measured], missing: list[str], options: Options) -> None:
    by_name = {line.name: line for line in lines}
    options.say(f"    {'':24}{'pairs/s':>10}{'spread':>18}{'CPU us':>9}{'target':>9}   ratio")
    for line in lines:
        beside = by_name.get(line.rival or "")
        ratio = f"{line.per_s / beside.per_s:.0f} x {beside.name}" if beside else ""
        spread = "-".join(f"{extreme(line.figures)[0]:,.0f}" for extreme in (min, max))
        target = f"{TARGET[line.name]:,}" if line.name in TARGET else ""
        options.say(f"    {line.name:24}{line.per_s:>10,.0f}{spread:>18}{line.cpu_us:>9.1f}{target:>9}   {ratio}")
    for reason in missing:
        options.say(f"    not measured: {reason}")


def in_memory(pairs: int) -> Round:
    @asynccontextmanager
    async def open_store() -> AsyncIterator[LevelStore]:
        yield MemoryLevelStore()

    return lambda: uvloop.run(measure(open_store, pairs, 1))


def in_file(path: Path, pairs: int, callers: int) -> Round:
    @asynccontextmanager
    async def open_store() -> AsyncIterator[LevelStore]:
        async with open_database(path) as stores:
            yield stores.levels

    return lambda: uvloop.run(measure(open_store, pairs, callers))


async def measure(
    open_store: Callable[[], AbstractAsyncContextManager[LevelStore]], pairs: int, callers: int
) -> tuple[float, float]:
    async with open_store() as store:
        reservations = Reservations(store, WallClock(), "bench:1:2:3", lease_s=600)

        async def work(caller: int, count: int) -> None:
            for number in range(count):
                attempt = f"{caller}-{number}"
                assert isinstance(await reservations.take(attempt, LIMITS, ASKED), Admitted)
                assert await reservations.settle(attempt, LIMITS, USED)

        await work(callers, 20)
        start_s, start_cpu_s = time.perf_counter(), time.process_time()
        await asyncio.gather(*(work(caller, pairs // callers) for caller in range(callers)))
        took_s, took_cpu_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
        assert await store.names("hold/") == []
        return pairs / took_s, took_cpu_s / pairs * 1e6


@contextmanager
def rival(command: list[str], pairs: int) -> Iterator[Round]:
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None, "it is a pipe"
        assert process.stdout is not None, "it is a pipe"
        told, said = process.stdin, process.stdout
        try:
            if said.readline() != "ready\n":
                raise RuntimeError(f"{' '.join(command)} did not start")

            def run_round() -> tuple[float, float]:
                told.write(f"{pairs} 1\n")
                told.flush()
                took_s, took_cpu_s = map(float, said.readline().split())
                return pairs / took_s, took_cpu_s / pairs * 1e6

            yield run_round
        finally:
            process.kill()
