"""Row B4: what is spent beyond a limit when many call at once, leave, and processes die.

One rule: the provider's own books say what was spent. Every gateway is a real process: Headgate's is `headgate serve`,
over SQLite, not told by the provider what became of calls of a process that died; beside it a baseline that checks
before a call and counts after it (`rivals/check_then_count.py`), as LiteLLM's proxy does, on the same calls.
"""

import asyncio
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.__main__ import Options, Result
from benchmarks.budget_gateways import Bounds, CheckThenCountGateways, Gateways, HeadgateGateways
from benchmarks.headgate_processes import Provider, provider_process
from headgate.adapters.providers.http import HttpClient, HttpError, parse_url

TITLE = "spent beyond a limit under concurrency, callers that leave, kill -9 and 2 processes, beside check-then-count"
TARGET = {"overshoot": 0, "leaked_holds": 0}
PUBLISHED = {"litellm_tokens": "663 of 100 (#18730)", "litellm_usd": "0.60 of 0.45 (#40002)"}

BUDGET_MICRO_USD, TOKENS, SLOTS = 450_000, 20_000, 8
INPUT_MICRO_USD, OUTPUT_MICRO_USD = 3, 15
"""A token's price, as in the configuration of the gateways: 3 and 15 dollars per million."""

_SEED = 4_520
_FIRST_TOKEN_S, _TOKENS_PER_S = 0.1, 1_000
_LOOK_EVERY_S = 0.01
_TRIES, _TRY_AGAIN_S = 200, 0.1
_LIMITED = 429
_BODY = (
    b'{"model":"claude-sonnet-4-5","max_tokens":300,"stream":%b,'
    b'"messages":[{"role":"user","content":"call %d: what does a headgate do?"}]}'
)


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is limited and what goes wrong: the share of callers that leave, and how many processes are killed."""

    name: str
    bounds: Bounds
    processes: int = 1
    leaving: float = 0.0
    kills: int = 0
    calls: int = 400
    when_quick: bool = True


SCENARIOS = (
    Scenario("tokens, 400 at once", Bounds(tokens=TOKENS)),
    Scenario("dollars, 400 at once", Bounds(micro_usd=BUDGET_MICRO_USD)),
    Scenario("dollars, half of the callers leave", Bounds(micro_usd=BUDGET_MICRO_USD), leaving=0.5),
    Scenario("dollars, 2 processes", Bounds(micro_usd=BUDGET_MICRO_USD), processes=2, when_quick=False),
    Scenario("dollars, 2 processes, 3 x kill -9", Bounds(micro_usd=BUDGET_MICRO_USD), processes=2, kills=3),
    Scenario(
        "slots, 2 processes, some leave, 1 x kill -9", Bounds(slots=SLOTS), processes=2, leaving=0.3, kills=1, calls=80
    ),
)


@dataclass(frozen=True, slots=True)
class Spent:
    """What the provider counted, and what the gateways counted and still held when everything had ended."""

    limit: int
    used: int
    counted: int
    held: int

    @property
    def overshoot(self) -> int:
        return max(0, self.used - self.limit)


def run(options: Options) -> Result:
    options.say("    'used' is what the provider counted (of slots: saw at once), money in micro-dollars; 'counts' and")
    options.say(
        "    'held' are Headgate's own: what died with a process counts at its bound. 400 calls a line, 80 for slots"
    )
    options.say(
        f"    {'':46}{'limit':>9}{'used':>9}{'over':>6}{'counts':>9}{'held':>6}{'check then count':>19}{'over':>9}"
    )
    ours, theirs = {}, {}
    for scenario in SCENARIOS:
        if options.quick and not scenario.when_quick:
            continue
        ours[scenario.name] = asyncio.run(play(scenario, HeadgateGateways))
        theirs[scenario.name] = asyncio.run(play(scenario, CheckThenCountGateways))
        show(scenario, ours[scenario.name], theirs[scenario.name], options)
    overshoot = sum(spent.overshoot for spent in ours.values())
    held = sum(spent.held for spent in ours.values())
    return Result(
        headgate={"overshoot": overshoot, "leaked_holds": held, "used": used_of(ours)},
        rival={"check_then_count": used_of(theirs), **PUBLISHED},
        target=TARGET,
        met=overshoot == 0 and held == 0,
        note=f"limits {BUDGET_MICRO_USD:,} micro-dollars, {TOKENS:,} tokens, {SLOTS} slots; LiteLLM's are its issues'",
    )


def used_of(spent: dict[str, Spent]) -> dict[str, int]:
    return {name: each.used for name, each in spent.items()}


def show(scenario: Scenario, ours: Spent, theirs: Spent, options: Options) -> None:
    options.say(
        f"    {scenario.name:46}{ours.limit:>9,}{ours.used:>9,}{ours.overshoot:>6,}{ours.counted:>9,}{ours.held:>6,}"
        f"{theirs.used:>19,}{theirs.overshoot:>9,}"
    )


async def play(scenario: Scenario, kind: type[Gateways]) -> Spent:
    """Let all callers loose on the gateways at once, and give what became of the limit."""
    chooser = random.Random(_SEED)
    with (
        tempfile.TemporaryDirectory(prefix="headgate-b4-") as folder,
        provider_process(
            *("--first-token-s", str(_FIRST_TOKEN_S), "--tokens-per-second", str(_TOKENS_PER_S)),
            *("--mean-output-tokens", "170"),
        ) as provider,
        kind(Path(folder), provider.url, scenario.bounds) as gateways,
    ):
        for _ in range(scenario.processes):
            gateways.start()
        client = HttpClient()
        callers = [
            call(client, gateways, number, leaves_after_s(scenario, chooser)) for number in range(scenario.calls)
        ]
        watch = asyncio.create_task(most_running(provider, calls_ended := asyncio.Event()))
        killer = asyncio.create_task(kill_some(gateways, provider, scenario.kills, chooser))
        try:
            await asyncio.gather(*callers)
        finally:
            killer.cancel()
            calls_ended.set()
            most = await watch
            await client.close()
        gateways.stop()
        total = provider.usage()["total"]
        used = most if scenario.bounds.slots is not None else spent_of(scenario.bounds, total)
        return Spent(scenario.bounds.limit, used, *gateways.counted_and_held())


def leaves_after_s(scenario: Scenario, chooser: random.Random) -> float | None:
    leaves, after_s = chooser.random() < scenario.leaving, chooser.uniform(0.0, 0.4)
    return after_s if leaves else None


async def call(client: HttpClient, gateways: Gateways, number: int, leaves_s: float | None) -> None:
    """Post one call, again where a process has died or slots are taken; leave it if the caller is one who leaves."""
    body = _BODY % (b"true" if number % 2 else b"false", number)
    headers = [(b"content-type", b"application/json"), (b"anthropic-version", b"2023-06-01")]
    for attempt in range(_TRIES):
        origin, _ = parse_url(gateways.urls[(number + attempt) % len(gateways.urls)])
        try:
            async with (
                asyncio.timeout(leaves_s),
                client.send("POST", origin, b"/v1/messages", headers=headers, body=body) as reply,
            ):
                await reply.read(1024 * 1024)
                if reply.status != _LIMITED or gateways.bounds.slots is None:
                    return
        except TimeoutError:
            return
        except HttpError:
            pass  # a gateway that was killed: another is there, or soon will be
        await asyncio.sleep(_TRY_AGAIN_S)
    raise RuntimeError(f"call {number} was not let in within {_TRIES} tries")


async def most_running(provider: Provider, calls_ended: asyncio.Event) -> int:
    """Give the most calls that the provider was seen to work on at once; returns when it works on none any more."""
    most = 0
    while True:
        running: int = provider.usage()["total"]["requests_running"]
        most = max(most, running)
        if calls_ended.is_set() and not running:
            return most
        await asyncio.sleep(_LOOK_EVERY_S)


async def kill_some(gateways: Gateways, provider: Provider, kills: int, chooser: random.Random) -> None:
    """Kill a process each time the provider has received a random number of calls more."""
    received = 0
    for _ in range(kills):
        received += chooser.randrange(15, 60)
        while provider.received() < received:  # noqa: ASYNC110 - what another process counts has no event
            await asyncio.sleep(_LOOK_EVERY_S)
        gateways.replace_one(chooser)


def spent_of(bounds: Bounds, total: dict[str, int]) -> int:
    prompt_tokens, output_tokens = total["input_tokens"], total["output_tokens"]
    if bounds.tokens is not None:
        return prompt_tokens + output_tokens
    return prompt_tokens * INPUT_MICRO_USD + output_tokens * OUTPUT_MICRO_USD
