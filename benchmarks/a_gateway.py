"""Row A: what a gateway costs on the way of a call, Headgate with all checks on and durable, beside its rivals.

One rule: all gateways meet the same calls in one run, in rounds that alternate, and figures are medians. A gateway has
a core to itself; the provider and the load share the other. What decides is the processor time per call of a gateway's
whole process tree, which is steadier than calls per second where cores are shared.
"""

import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Literal

from benchmarks import gateways
from benchmarks.__main__ import Options, Result
from benchmarks.gateways import MODEL, PATH, Gateway
from benchmarks.load_generator import STALL_S, Load, Seen
from benchmarks.mock_upstream import EVENTS
from benchmarks.process_tree import ProcessTree, cores, kept_to, running
from benchmarks.rivals.environment import RivalMissingError

TITLE = "a gateway's cost per call, beside direct calls, nginx, Portkey (Node) and LiteLLM, each on one core"
DIRECT, HEADGATE = "direct", "Headgate"
MEMORY, COLD_START = "memory under load, MiB", "cold start to first answer, s"

_FOLDER = Path(__file__).parent
_MOST_CALLS = 200_000
_GRACE_S = 60.0
_LOAD_BOUND_S = 120.0


@dataclass(frozen=True)
class Scenario:
    """Calls of one kind, and the figure that is taken of them.

    `ratios` says what part of Headgate's figure a rival's has to be at least: 100 for a hundredth of the rival's cost.
    """

    name: str
    figure: Literal["CPU us", "p50 us", "stalls"]
    connections: int
    target: float
    ratios: dict[str, float] = field(default_factory=dict)
    events: int = 0
    pace_ms: int = 0
    turns: int = 1
    """Messages of 2,000 bytes, as an agent's conversation has them."""

    @property
    def label(self) -> str:
        return f"{self.name}, {self.figure}"

    def load(self, gateway: Gateway, seconds: float) -> Load:
        asked: dict[str, object] = {"model": MODEL, "max_tokens": 256, "temperature": 0.2}
        turn = ("All work has to go through the gate. " * 60)[: 500 if self.turns == 1 else 2_000]
        asked["messages"] = [
            {"role": "assistant" if number % 2 else "user", "content": turn} for number in range(self.turns)
        ]
        if self.events:
            asked |= {"stream": True, "stream_options": {"include_usage": True}}
        if self.pace_ms:
            asked["user"] = f"pace-{self.pace_ms}ms"
        most_calls = self.connections if self.figure == "stalls" else _MOST_CALLS
        body = json.dumps(asked)
        return Load(
            gateway.port, PATH, gateway.headers, body, self.connections, seconds, most_calls, _GRACE_S, self.events
        )


SCENARIOS = (
    Scenario("JSON, 64 connections", "CPU us", 64, 130, {"LiteLLM": 100, "Portkey": 10}),
    Scenario("JSON, 1 connection", "p50 us", 1, 450),
    Scenario("stream, 16 connections", "CPU us", 16, 550, {"LiteLLM": 100, "Portkey": 4, "nginx": 0.5}, EVENTS),
    Scenario("64 streams, 20 ms apart", "CPU us", 64, 2_800, {"LiteLLM": 20, "Portkey": 3}, EVENTS, 20),
    Scenario("200 KB body, 8 connections", "CPU us", 8, 550, {"LiteLLM": 100, "Portkey": 10}, turns=99),
    Scenario("512 streams, 20 ms apart", "stalls", 512, 0, {}, EVENTS, 20),
)
PRICED = tuple(scenario for scenario in SCENARIOS if scenario.figure != "stalls")
"""What is measured in every round; whether streams stall is asked once."""

TARGET = {**{scenario.label: scenario.target for scenario in SCENARIOS}, MEMORY: 80.0, COLD_START: 1.0}


@dataclass
class Contender:
    """A gateway and what was seen of it, by scenario."""

    gateway: Gateway
    figures: dict[str, list[float]] = field(default_factory=dict)
    calls_per_s: dict[str, list[float]] = field(default_factory=dict)
    memory_mib: float = 0.0
    answered: int = 1  # its first answer, which told that it is ready
    failures: dict[str, str] = field(default_factory=dict)

    def result(self) -> dict[str, float]:
        figures = {name: round(median(seen), 1) for name, seen in self.figures.items() if seen}
        if self.gateway.name != DIRECT:
            figures |= {MEMORY: round(self.memory_mib, 1), COLD_START: round(self.gateway.cold_start_s, 2)}
        return figures


def run(options: Options) -> Result:
    rounds, seconds = (1, 1.2) if options.quick else (3, 2.5)
    notes = [f"medians of {rounds} alternating round{'s' * (rounds > 1)}; 'direct' is the provider's own cost"]
    of_gateways, of_load = cores() or (None, None)
    if of_gateways is None:
        notes.append("gateway, provider and load share their cores: there is one, or processes cannot be kept to one")
    with tempfile.TemporaryDirectory(prefix="headgate-a-") as kept, ExitStack() as stack, kept_to(of_load):
        folder = Path(kept)
        contenders = start(folder, of_gateways, stack, notes, quick=options.quick)
        for contender in contenders:
            for scenario in SCENARIOS[:3]:
                measure(contender, scenario, seconds / 4, counts=False)
        for number in range(rounds):
            for scenario in SCENARIOS if number == 0 else PRICED:
                for contender in contenders:
                    measure(contender, scenario, seconds)
        ours = next(contender for contender in contenders if contender.gateway.name == HEADGATE)
        notes += check_ledger(ours)
    notes += failures(contenders)
    show(contenders, options)
    result = ours.result()
    return Result(
        headgate=result,
        rival={each.gateway.name: each.result() for each in contenders if each is not ours},
        target=TARGET,
        met=not ours.failures and all(result.get(name, figure + 1) <= figure for name, figure in TARGET.items()),
        note="; ".join([*notes, *ratio_notes(contenders, result)]),
    )


def start(folder: Path, core: int | None, stack: ExitStack, notes: list[str], *, quick: bool) -> list[Contender]:
    """Start the provider and every gateway that can be had."""
    upstream, port = stack.enter_context(provider(folder))
    contenders = [Contender(Gateway(DIRECT, port, upstream, 0.0))]
    chosen = [gateways.nginx, gateways.headgate] if quick else [
        gateways.nginx, gateways.portkey, gateways.litellm, gateways.headgate,
    ]  # fmt: skip
    if quick:
        notes.append("LiteLLM and Portkey are left out of a quick run: they take long to start and to answer")
    for gateway in chosen:
        place = folder / gateway.__name__
        place.mkdir()
        try:
            contenders.append(Contender(stack.enter_context(gateway(port, place, core))))
        except RivalMissingError as error:
            notes.append(f"not measured: {error}")
    return contenders


@contextmanager
def provider(folder: Path) -> Iterator[tuple[ProcessTree, int]]:
    with running([sys.executable, _FOLDER / "mock_upstream.py"], folder, core=None) as tree:
        bound_s = time.perf_counter() + 10
        while not tree.said().endswith("\n"):
            if tree.has_ended() or time.perf_counter() > bound_s:
                raise RuntimeError(f"the provider did not start: {tree.said()}")
            time.sleep(0.01)
        yield tree, int(tree.said())


def measure(
    contender: Contender, scenario: Scenario, seconds: float, *, counts: bool = True, most_calls: int = _MOST_CALLS
) -> None:
    """Run a scenario once against a gateway; without `counts` only to warm it."""
    gateway = contender.gateway
    if gateway.tree.has_ended():
        contender.failures[scenario.name] = "the gateway had ended by itself"
        return
    before_s = gateway.tree.cpu_s()
    with subprocess.Popen(
        [sys.executable, _FOLDER / "load_generator.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as generator:
        assert generator.stdin is not None
        load = scenario.load(gateway, seconds)
        json.dump(asdict(replace(load, most_calls=min(load.most_calls, most_calls))), generator.stdin)
        generator.stdin.close()
        generator.stdin = None
        try:
            time.sleep(min(1.25, seconds / 2))
            memory_mib = gateway.tree.memory_mib()
            seen = Seen(**json.loads(generator.communicate(timeout=_LOAD_BOUND_S)[0]))
        finally:
            generator.kill()
    cpu_s = gateway.tree.cpu_s() - before_s
    contender.answered += seen.calls
    if seen.errors:
        contender.failures[scenario.name] = f"{seen.errors} of its calls failed, the first: {seen.first_error}"
    if not counts:
        return
    contender.memory_mib = max(contender.memory_mib, memory_mib)
    contender.calls_per_s.setdefault(scenario.label, []).append(seen.calls / seen.took_s)
    figures = contender.figures.setdefault(scenario.label, [])
    if scenario.figure == "stalls":
        figures.append(seen.stalls + seen.errors)
    elif seen.calls:
        figures.append(seen.p50_us if scenario.figure == "p50 us" else cpu_s * 1e6 / seen.calls)


def check_ledger(contender: Contender) -> list[str]:
    """Compare what Headgate's ledger counts with the answers that came; fails the run where they differ."""
    gateway = contender.gateway
    request = urllib.request.Request(f"http://127.0.0.1:{gateway.port}/api/v1/usage", headers=gateway.headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=30) as answer:
        recorded = json.load(answer)["total"]["requests"]
    if recorded != contender.answered and not contender.failures:
        contender.failures["ledger"] = f"it has {recorded:,} calls, and {contender.answered:,} were answered"
    return [f"Headgate's ledger has {recorded:,} calls; {contender.answered:,} were answered"]


def failures(contenders: Sequence[Contender]) -> list[str]:
    return [f"{each.gateway.name}, {where}: {what}" for each in contenders for where, what in each.failures.items()]


def show(contenders: Sequence[Contender], options: Options) -> None:
    results = {contender.gateway.name: contender.result() for contender in contenders}
    options.say(f"    {'':36}" + "".join(f"{name:>10}" for name in results) + f"{'target':>9}   calls/s   ratios")
    ours = next(contender for contender in contenders if contender.gateway.name == HEADGATE)
    for name, target in TARGET.items():
        cells = "".join(f"{_figure(result.get(name)):>10}" for result in results.values())
        per_s = f"{median(ours.calls_per_s[name]):>9,.0f}" if name in ours.calls_per_s else f"{'':9}"
        options.say(f"    {name:36}{cells}{_figure(target):>9} {per_s}   {_ratios(name, results)}")
    for failure in failures(contenders):
        options.say(f"    {failure}")
    options.say(f"    a stall is a stream that is silent for {STALL_S:.0f} s, or a call that fails")


def ratio_notes(contenders: Sequence[Contender], ours: dict[str, float]) -> Iterator[str]:
    """Say where Headgate is not as many times cheaper than a rival as it has to be."""
    for scenario in SCENARIOS:
        for contender in contenders:
            wanted = scenario.ratios.get(contender.gateway.name)
            theirs = contender.result().get(scenario.label)
            mine = ours.get(scenario.label)
            if wanted and theirs and mine and theirs / mine < wanted:
                name = contender.gateway.name
                yield f"{scenario.name}: {name} costs {theirs / mine:.2g} times as much, wanted {wanted:g} times"


def _ratios(name: str, results: dict[str, dict[str, float]]) -> str:
    mine = results[HEADGATE].get(name)
    if not mine:
        return ""
    rivals = ((rival, result.get(name)) for rival, result in results.items() if rival not in (HEADGATE, DIRECT))
    return ", ".join(f"{theirs / mine:.2g} x {rival}" for rival, theirs in rivals if theirs)


def _figure(figure: float | None) -> str:
    if figure is None:
        return "-"
    return f"{figure:,.2f}" if 0 < figure < 10 else f"{figure:,.0f}"
