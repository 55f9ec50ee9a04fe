"""Row B7: agents that fail against a provider that answers 429, raw and through Headgate, and what that costs.

One rule: the same agents and the same exact bucket, in virtual time. A raw agent does as the official SDKs do: 2
retries, `retry-after` honoured up to 60 s, else 0.5 to 8 s of back-off (wire.md section 1); it fails with its first
call that does. The overhead is real time: what a call costs of CPU beyond its provider's answer.
"""

import asyncio
import random
import time

from benchmarks.__main__ import Options, Result
from benchmarks.refusing_provider import MODEL, REQUEST, RefusingProvider, managed
from headgate.core.errors import HeadgateError
from headgate.runtime.calls import Call
from headgate.runtime.manager import Manager
from headgate.testing.virtual_time import VirtualClock
from headgate.testing.virtual_time import run as run_virtually

TITLE = "agents that fail against a provider that answers 429, beside raw clients with the SDKs' retries"
AGENTS = (5, 10, 20, 50)
CALLS, RATE, ANSWER_S = 20, 30, 2.0
SDK_RETRIES, SDK_FIRST_S, SDK_MOST_S, SDK_MOST_HONOURED_S = 2, 0.5, 8.0, 60.0
TARGET_MS = 0.1
MAX_WAIT_S = 3_600.0
PAPER = "HiveMind (paper 2604.17111): 0-18 % of the agents fail"


def run(options: Options) -> Result:
    lines: dict[str, dict[str, float]] = {}
    options.say(f"    each agent makes {CALLS} calls of {ANSWER_S:g} s; the provider takes {RATE} a minute")
    options.say(f"    {'agents':>10}{'raw fail':>12}{'headgate fail':>16}{'raw 429s':>12}{'headgate 429s':>16}")
    for agents in AGENTS:
        raw_failed, raw_refused = run_virtually(raw(agents))
        failed, refused = run_virtually(through_headgate(agents))
        lines[str(agents)] = {
            "raw": raw_failed / agents,
            "headgate": failed / agents,
            "raw_429s": raw_refused,
            "headgate_429s": refused,
        }
        options.say(
            f"    {agents:>10}{raw_failed / agents:>12.0%}{failed / agents:>16.0%}{raw_refused:>12}{refused:>16}"
        )
    overhead_ms = min(asyncio.run(overhead(1_000 if options.quick else 5_000)) for _ in range(3))
    options.say(f"    overhead in process: {overhead_ms:.3f} ms a call, target {TARGET_MS} ms")
    return Result(
        headgate={"failed": {name: each["headgate"] for name, each in lines.items()}, "overhead_ms": overhead_ms},
        rival={"failed": {name: each["raw"] for name, each in lines.items()}},
        target={"failed": 0.0, "overhead_ms": TARGET_MS},
        met=all(each["headgate"] == 0 for each in lines.values()) and overhead_ms < TARGET_MS,
        note=PAPER,
    )


async def raw(agents: int) -> tuple[int, int]:
    provider, chooser = RefusingProvider(RATE, answer_s=ANSWER_S), random.Random(7)

    async def call() -> bool:
        for attempt in range(SDK_RETRIES + 1):
            wait_s = await provider.ask()
            if wait_s is None:
                return True
            if wait_s > SDK_MOST_HONOURED_S:
                wait_s = min(SDK_MOST_S, SDK_FIRST_S * 2**attempt) * (1 - 0.25 * chooser.random())
            if attempt < SDK_RETRIES:
                await asyncio.sleep(wait_s)
        return False

    async def agent() -> bool:
        for _ in range(CALLS):
            if not await call():
                return False
        return True

    done = await asyncio.gather(*[agent() for _ in range(agents)])
    return done.count(False), provider.refused


async def through_headgate(agents: int) -> tuple[int, int]:
    provider = RefusingProvider(RATE, answer_s=ANSWER_S)
    async with managed(provider, VirtualClock()) as manager:

        async def agent() -> bool:
            try:
                return all([await asked(manager) == 200 for _ in range(CALLS)])
            except HeadgateError:
                return False

        done = await asyncio.gather(*[agent() for _ in range(agents)])
    return done.count(False), provider.refused


async def asked(manager: Manager) -> int:
    call = Call(MODEL, text_bytes=400, max_output_tokens=100, max_wait_s=MAX_WAIT_S)
    async with manager.carry(call, REQUEST) as exchange:
        async for _piece in manager.read(exchange):
            pass
        return exchange.answer.status


class _WallClock:
    def now_s(self) -> float:
        return time.time()


async def overhead(calls: int) -> float:
    """Give the CPU time of a call through a manager with learned limits, less that of the provider alone, in ms."""
    provider = RefusingProvider(100_000_000, answer_s=0.0, headers=True)
    async with managed(provider, _WallClock()) as manager:
        for _ in range(100):
            await asked(manager)
        began_s = time.process_time()
        for _ in range(calls):
            await asked(manager)
        ours_s = time.process_time() - began_s
    began_s = time.process_time()
    for _ in range(calls):
        async with provider.send(REQUEST) as answer:
            async for _piece in answer:
                pass
    return round((ours_s - (time.process_time() - began_s)) / calls * 1000, 4)
