"""Row B6: learning a limit that nobody told, and one that changes, beside botocore's adaptive mode.

One rule: the same loops of calls, the same exact bucket, in virtual time: 600 requests a minute, then half, then 600
again. Botocore's own classes decide (rate clocker, CUBIC, token bucket); only their clock is the loop's, and their
retries are its standard mode's (3 attempts, full jitter). It reads no headers, so the fair line is Headgate's without.
"""

import asyncio
import importlib
import random
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from benchmarks.__main__ import Options, Result
from benchmarks.refusing_provider import MODEL, REQUEST, RefusingProvider, managed
from headgate.core.errors import HeadgateError
from headgate.runtime.calls import Call
from headgate.testing.virtual_time import VirtualClock
from headgate.testing.virtual_time import run as run_virtually

TITLE = "429s until an unknown limit is known within 5 %, and how much of it is used, beside botocore's adaptive mode"
ANSWER_S, WITHIN = 0.3, 0.05
MINUTE_S = 60
CLOSE = 0.01
"""Whoever is refused twenty times a minute uses a bucket to its last drop: more use than that cannot be had."""
ATTEMPTS, MOST_BACKOFF_S = 3, 20.0


@dataclass(frozen=True, slots=True)
class Phase:
    """What one of the rates came to; `until_known` counts 429s until the rate was first known within 5 %."""

    rate: int
    refused: int
    until_known: int | None
    known_after_s: float | None
    used: float


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What is played: the rates one after the other, how many loops call, and how the provider behaves."""

    rates: tuple[int, ...] = (600, 300, 600)
    loops: int = 20
    depth_s: float = 60.0
    noise: float = 0.0
    transit_s: float = 0.0


ORDINARY = Circumstances()
ELSEWHERE = {
    "to a quarter and back": Circumstances((600, 150, 600)),
    "three times, 50 loops": Circumstances((300, 900, 300), loops=50),
    "a bucket of 10 s": Circumstances(depth_s=10.0),
    "noise": Circumstances(noise=0.7, transit_s=0.5),
}
"""Other steps and providers, so that the rules fit no single one."""
ELSEWHERE_MINUTES = 4
Ask = Callable[[], Awaitable[None]]
Known = Callable[[], Awaitable[float | None]]
Rival = Callable[[RefusingProvider, AsyncExitStack], Awaitable[tuple[Ask, Known]]]


def run(options: Options) -> Result:
    minutes = 4 if options.quick else 10
    note = ""
    try:
        importlib.import_module("botocore.retries.adaptive")
    except ImportError:
        note = "botocore is not installed; install the extra `bench`"
    lines = play(ORDINARY, minutes, with_rival=not note)
    show(lines, minutes, options)
    told = {name: figures(phases) for name, phases in lines.items()}
    rival = told.get("botocore adaptive")
    if not options.quick:
        options.say(f"    elsewhere, {ELSEWHERE_MINUTES} virtual minutes at each rate: 429s, use")
        for name, at in ELSEWHERE.items():
            found = {line: figures(phases) for line, phases in play(at, ELSEWHERE_MINUTES, with_rival=not note).items()}
            told |= {f"{line}, {name}": each for line, each in found.items()}
            cells = [f"{line} {each['refused']}, {each['used']:.1%}" for line, each in found.items()]
            options.say(f"    {name:22}{'   '.join(cells)}")
    return Result(
        headgate={name: each for name, each in told.items() if name.startswith("headgate")},
        rival=rival,
        target="fewer 429s at the same use, within a point; none by headers",
        met=rival is not None and is_met(told["headgate, headers"], told["headgate, 429s only"], rival),
        note=note,
    )


def is_met(by_headers: dict[str, Any], by_429s: dict[str, Any], rival: dict[str, Any]) -> bool:
    used = min(by_headers["used"], by_429s["used"])
    return bool(by_headers["refused"] == 0 and by_429s["refused"] < rival["refused"] and used >= rival["used"] - CLOSE)


def play(at: Circumstances, minutes: int, *, with_rival: bool) -> dict[str, list[Phase]]:
    lines = {
        "headgate, headers": run_virtually(measure(headgate, minutes, headers=True, at=at)),
        "headgate, 429s only": run_virtually(measure(headgate, minutes, at=at)),
    }
    if with_rival:
        lines["botocore adaptive"] = run_virtually(measure(botocore, minutes, at=at))
    return lines


def figures(phases: list[Phase]) -> dict[str, Any]:
    return {
        "refused": sum(phase.refused for phase in phases),
        "until_known": [phase.until_known for phase in phases],
        "used": round(sum(phase.used for phase in phases) / len(phases), 3),
    }


def show(lines: dict[str, list[Phase]], minutes: int, options: Options) -> None:
    options.say(f"    {ORDINARY.loops} loops, answers of {ANSWER_S} s, {minutes} virtual minutes at each rate")
    options.say(f"    {'':22}{'a minute':>10}{'429s':>8}{'until known':>13}{'known after':>13}{'used':>8}")
    for name, phases in lines.items():
        for phase in phases:
            until = "never" if phase.until_known is None else str(phase.until_known)
            after = "" if phase.known_after_s is None else f"{phase.known_after_s:.0f} s"
            options.say(f"    {name:22}{phase.rate:>10}{phase.refused:>8}{until:>13}{after:>13}{phase.used:>8.1%}")


async def measure(rival: Rival, minutes: int, *, headers: bool = False, at: Circumstances = ORDINARY) -> list[Phase]:
    """Let the loops call, change the rate, and count; the first phase's bucket begins full, which counts as given."""
    loop = asyncio.get_running_loop()
    provider = RefusingProvider(
        at.rates[0], answer_s=ANSWER_S, headers=headers, depth_s=at.depth_s, noise=at.noise, transit_s=at.transit_s
    )
    phases: list[Phase] = []
    async with AsyncExitStack() as stack:
        ask, known = await rival(provider, stack)
        for number, rate in enumerate(at.rates):
            if number:
                provider.change(rate)
            given = rate * minutes + provider.bucket.level(loop.time())
            began_s, refused, served = loop.time(), provider.refused, provider.served
            watch = asyncio.create_task(first_known(known, rate, provider))
            await loops(ask, began_s + minutes * MINUTE_S, at.loops)
            watch.cancel()
            at_s, until = watch.result() if watch.done() and not watch.cancelled() else (None, None)
            await asyncio.gather(watch, return_exceptions=True)
            phases.append(
                Phase(
                    rate,
                    provider.refused - refused,
                    None if until is None else until - refused,
                    None if at_s is None else at_s - began_s,
                    (provider.served - served) / given,
                )
            )
    return phases


async def loops(ask: Ask, until_s: float, count: int) -> None:
    loop = asyncio.get_running_loop()

    async def agent() -> None:
        await asyncio.sleep(random.Random(7).random())
        while loop.time() < until_s:
            await ask()

    try:
        async with asyncio.timeout_at(until_s):
            await asyncio.gather(*[agent() for _ in range(count)])
    except TimeoutError:
        pass  # the end of the phase, in which some were on their way


async def first_known(known: Known, rate: int, provider: RefusingProvider) -> tuple[float, int]:
    """Give when the rate was first known within 5 %, and how many 429s there had been."""
    while True:
        await asyncio.sleep(0.5)
        believed = await known()
        if believed is not None and abs(believed - rate) <= WITHIN * rate:
            return asyncio.get_running_loop().time(), provider.refused


async def headgate(provider: RefusingProvider, stack: AsyncExitStack) -> tuple[Ask, Known]:
    manager = await stack.enter_async_context(managed(provider, VirtualClock()))

    async def ask() -> None:
        try:
            call = Call(MODEL, text_bytes=400, max_output_tokens=100)
            async with manager.carry(call, REQUEST) as exchange:
                async for _piece in manager.read(exchange):
                    pass
        except HeadgateError:
            await asyncio.sleep(1)

    async def known() -> float | None:
        learned = [view.learned for view in await manager.limits() if view.dimension == "requests"]
        return learned[0] if learned else None

    return ask, known


async def botocore(provider: RefusingProvider, stack: AsyncExitStack) -> tuple[Ask, Known]:
    del stack
    adaptive = importlib.import_module("botocore.retries.adaptive")
    bucket = importlib.import_module("botocore.retries.bucket")
    throttling = importlib.import_module("botocore.retries.throttling")
    clock, chooser = _LoopClock(), random.Random(7)
    tokens = bucket.TokenBucket(max_rate=1, clock=clock)
    limiter = adaptive.ClientRateLimiter(
        rate_adjustor=throttling.CubicCalculator(starting_max_rate=0, start_time=clock.current_time()),
        rate_clocker=adaptive.RateClocker(clock),
        token_bucket=tokens,
        throttling_detector=_Detector(),
        clock=clock,
    )
    no_room = importlib.import_module("botocore.exceptions").CapacityNotAvailableError

    async def ask() -> None:
        for attempt in range(ATTEMPTS):
            while limiter._enabled:  # noqa: SLF001 - `on_sending_request` blocks a thread; this waits as it does
                try:
                    tokens.acquire(block=False)
                    break
                except no_room:
                    await asyncio.sleep(max(1e-3, min(0.1, tokens._sleep_amount(1))))  # noqa: SLF001 - as above
            refused = await provider.ask() is not None
            limiter.on_receiving_response(refused=refused)
            if not refused:
                return
            await asyncio.sleep(min(MOST_BACKOFF_S, chooser.random() * 2**attempt))

    async def known() -> float | None:
        return float(tokens.max_rate) * MINUTE_S if limiter._enabled else None  # noqa: SLF001 - what it believes

    return ask, known


class _LoopClock:
    def current_time(self) -> float:
        return asyncio.get_running_loop().time()


class _Detector:
    def is_throttling_error(self, *, refused: bool) -> bool:
        return refused
