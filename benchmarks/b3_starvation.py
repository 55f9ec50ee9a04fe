"""Row B3: how long a call of 90 % of a limit waits behind 20 loops of small ones.

One rule: the work is the same for all (`rivals/big_call.py`), in real time; Headgate does it as its users do, with
`manager.admit`. The limit gives 1,000 units a second and is empty when the big call comes, so 0.9 s is the ideal. The
small calls take 2 units each; token-throttle is too slow to empty the limit with these, so its loops take 10.
"""

import asyncio
import json
import random
import subprocess
import time
from pathlib import Path
from statistics import median

from benchmarks.__main__ import Options, Result
from benchmarks.rivals.big_call import BIG, BUSY_S, IDEAL_S, UNITS_PER_S, round_of
from benchmarks.rivals.environment import RivalMissingError, python_with
from headgate.adapters.memory import MemoryKeyStore, MemoryLedgerStore, MemoryLevelStore
from headgate.core.accounts import Account
from headgate.core.limits import Rate
from headgate.core.scopes import LimitRule
from headgate.core.usage import Usage
from headgate.runtime.calls import Call
from headgate.runtime.manager import Manager, Parts
from headgate.testing.scripted import FlatPrices, ScriptedProvider

TITLE = "wait of a call of 90 % of the limit behind 20 loops of small calls, beside aiolimiter and token-throttle"
TARGET_S = 1.0
RIVAL_SCRIPT = Path(__file__).parent / "rivals" / "big_call.py"
PIECE, LARGE_PIECE = 2, 10
_RIVALS = (
    ("aiolimiter", "aiolimiter", "aiolimiter>=1.2", (3, 9), PIECE),
    ("aiolimiter", "aiolimiter", "aiolimiter>=1.2", (3, 9), LARGE_PIECE),
    ("token-throttle", "token_throttle", "token-throttle==14.*", (3, 12), LARGE_PIECE),
)
_SCOPE = "account:main"

Rounds = list[dict[str, float]]


def run(options: Options) -> Result:
    rounds = 3 if options.quick else 10
    lines = {name_of("headgate", piece): headgate_rounds(piece, rounds) for piece in (PIECE, LARGE_PIECE)}
    missing = []
    for name, module, requirement, at_least, piece in _RIVALS:
        try:
            python = python_with(module, requirement, at_least)
        except RivalMissingError as error:
            missing.append(str(error))
            continue
        lines[name_of(name, piece)] = rival_rounds(python, name, piece, 1 if options.quick else 3)
    show(lines, missing, options)
    told = {name: figures(rounds) for name, rounds in lines.items()}
    return Result(
        headgate={name: each for name, each in told.items() if name.startswith("headgate")},
        rival={name: each for name, each in told.items() if not name.startswith("headgate")},
        target={"wait_s": TARGET_S},
        met=told[name_of("headgate", PIECE)]["longest_s"] <= TARGET_S,
        note="; ".join([*dict.fromkeys(missing), f"ideal {IDEAL_S} s; the loops end after {BUSY_S:g} s"]),
    )


def name_of(name: str, piece: int) -> str:
    return f"{name}, pieces of {piece / UNITS_PER_S:.1%}"


def figures(rounds: Rounds) -> dict[str, float]:
    waits_s = [each["wait_s"] for each in rounds]
    return {
        "wait_s": round(median(waits_s), 3),
        "longest_s": max(waits_s),
        "limit_used": round(median(each["used"] for each in rounds), 3),
        "rounds": len(rounds),
    }


def show(lines: dict[str, Rounds], missing: list[str], options: Options) -> None:
    ours = figures(lines[name_of("headgate", PIECE)])["wait_s"]
    options.say(f"    a call of {BIG} units, {UNITS_PER_S} a second; ideal {IDEAL_S} s, target {TARGET_S} s")
    options.say(f"    {'':34}{'wait s':>8}{'longest':>9}{'limit used':>12}{'rounds':>8}   x headgate")
    for name, rounds in lines.items():
        told = figures(rounds)
        options.say(
            f"    {name:34}{told['wait_s']:>8.3f}{told['longest_s']:>9.3f}{told['limit_used']:>12.1%}"
            f"{told['rounds']:>8}   {told['wait_s'] / ours:.1f}"
        )
    for reason in dict.fromkeys(missing):
        options.say(f"    not measured: {reason}")


class WallClock:
    def now_s(self) -> float:
        return time.time()


def headgate_rounds(piece: int, rounds: int) -> Rounds:
    return [asyncio.run(headgate_round(piece)) for _ in range(rounds)]


async def headgate_round(piece: int) -> dict[str, float]:
    limit = Rate("", _SCOPE, "input_tokens", UNITS_PER_S, 1, UNITS_PER_S)
    manager = Manager(
        Parts(
            levels=MemoryLevelStore(),
            ledger=MemoryLedgerStore(),
            keys=MemoryKeyStore(),
            prices=FlatPrices(),
            clock=WallClock(),
            owner="bench:1:2:3",
            owner_is_alive=lambda _owner: True,
            accounts=[Account("main", "anthropic")],
            providers={"main": ScriptedProvider()},
            rules=[LimitRule(_SCOPE, limit)],
            rules_of_key=lambda _key: (),
            chooser=random.Random(7),
        )
    )
    await manager.start()

    async def acquire(units: int) -> None:
        async with manager.admit(Call("model", input_tokens=units)) as grant:
            grant.settle(Usage(units))

    try:
        return await round_of(acquire, piece)
    finally:
        await manager.close()


def rival_rounds(python: Path, name: str, piece: int, rounds: int) -> Rounds:
    """Run a rival in a process of its own; a round takes as long as it lets the big call starve."""
    within_s = 30 + rounds * (BUSY_S + 10)
    done = subprocess.run(
        [python, RIVAL_SCRIPT, name, str(piece), str(rounds)],
        capture_output=True,
        text=True,
        timeout=within_s,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{name} broke off: {done.stderr[-500:]}")
    return [json.loads(line) for line in done.stdout.splitlines()]
