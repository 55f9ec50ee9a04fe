"""Row B5: how well the estimate of a call's output keeps its promise of 95 %, and how much it holds for that.

One rule: each call is estimated before it is learned from, once, in the order of its trace; all rivals see the same.
A prompt stands in for its text by four bytes a token. Calls before there is a quantile (the first 19) are held at the
prior and counted apart: no trace says anything of them. Beside it, without a rival: how often and how far calls exceed
what limits with `hold = "likely"` hold of their output.
"""

from collections.abc import Callable, Sequence
from math import ceil, sqrt
from statistics import fmean
from typing import NamedTuple, Protocol

from benchmarks.__main__ import Options, Result
from benchmarks.recorded_calls import TRACES, RecordedCall, missing_traces, read_trace
from headgate.core.estimates import CallSize, Estimator
from headgate.core.quantiles import RollingQuantile
from headgate.core.usage import Usage

TITLE = "calibration of the p95 estimate of output, beside a fixed maximum, EWMA and one quantile for all calls"
PROMISE = 0.95
WITHIN_POINTS = 0.5
MEAN_HOLD = {"azure_conv": 456, "azure_code": 92, "mooncake": 705}
MAX_TOKENS = 4_096
WARM_UP = 19
"""A quantile of 95 % needs so many observations."""

_BYTES_PER_TOKEN = 4


class Estimating(Protocol):
    """A rule that says what to hold for a call, and learns from what it wrote."""

    def hold(self, call: RecordedCall) -> int: ...

    def learn(self, call: RecordedCall) -> None: ...


class Headgate:
    """The product's own estimator."""

    def __init__(self) -> None:
        self.estimator = Estimator()

    def hold(self, call: RecordedCall) -> int:
        return self.estimator.estimate(size_of(call), call.came_s).output_tokens

    def learn(self, call: RecordedCall) -> None:
        self.estimator.observe(size_of(call), Usage(call.input_tokens, output_tokens=call.output_tokens), call.came_s)


class FixedMaximum:
    """What limiters hold that reserve `max_tokens`."""

    def hold(self, _call: RecordedCall) -> int:
        return MAX_TOKENS

    def learn(self, call: RecordedCall) -> None:
        pass


class Ewma:
    """The moving mean; with `deviations`, so many moving standard deviations more (1.645: 95 % of a normal)."""

    SHARE = 0.1

    def __init__(self, deviations: float) -> None:
        self.deviations, self.mean, self.variance = deviations, float(MAX_TOKENS), 0.0
        self.learned = False

    def hold(self, _call: RecordedCall) -> int:
        return min(MAX_TOKENS, ceil(self.mean + self.deviations * sqrt(self.variance)))

    def learn(self, call: RecordedCall) -> None:
        if not self.learned:
            self.mean, self.learned = float(call.output_tokens), True
        off = call.output_tokens - self.mean
        self.mean += self.SHARE * off
        self.variance = (1 - self.SHARE) * (self.variance + self.SHARE * off * off)


class OneQuantile:
    """The rolling split-conformal quantile over all calls alike."""

    def __init__(self) -> None:
        self.outputs = RollingQuantile()

    def hold(self, _call: RecordedCall) -> int:
        found = self.outputs.value(PROMISE)
        return MAX_TOKENS if found is None else ceil(found)

    def learn(self, call: RecordedCall) -> None:
        self.outputs.observe(call.output_tokens)


RIVALS: dict[str, Callable[[], Estimating]] = {
    "fixed maximum": FixedMaximum,
    "EWMA": lambda: Ewma(0.0),
    "EWMA + 1.645 sd": lambda: Ewma(1.645),
    "one quantile": OneQuantile,
}


class Calibration(NamedTuple):
    """The share of calls that stayed within their hold, and the mean hold; over all calls, warm-up included, too."""

    covered: float
    mean_hold: float
    mean_hold_of_all: float

    @property
    def off_points(self) -> float:
        return abs(self.covered - PROMISE) * 100


class Exceeded(NamedTuple):
    """How many of the calls that were held at what is likely wrote more, how much more at the most, the mean hold."""

    calls: int
    exceeded: int
    most_beyond: int
    mean_hold: float


def run(options: Options) -> Result:
    missing = missing_traces(options.data)
    if missing or options.data is None:
        return Result(None, None, None, met=False, note=missing)
    ours: dict[str, Calibration] = {}
    theirs: dict[str, dict[str, Calibration]] = {name: {} for name in RIVALS}
    likely: dict[str, Exceeded] = {}
    options.say(f"    {'':12}{'':18}{'covered':>9}{'mean hold':>11}{'of all':>9}   promised {PROMISE:.0%}")
    for trace in TRACES:
        calls = read_trace(options.data, trace)
        ours[trace] = calibrate(calls, Headgate())
        show(trace, "headgate", ours[trace], options)
        for name, rival in RIVALS.items():
            theirs[name][trace] = calibrate(calls, rival())
            show("", name, theirs[name][trace], options)
        likely[trace] = found = exceeded_likely(calls)
        options.say(
            f'    {"":12}hold = "likely": {found.exceeded} of {found.calls:,} calls wrote more, at the most by '
            f"{found.most_beyond:,} tokens; mean hold {found.mean_hold:,.0f}"
        )
    return Result(
        headgate={**figures(ours), "likely": {trace: each._asdict() for trace, each in likely.items()}},
        rival={name: figures(each) for name, each in theirs.items()},
        target={"within_points": WITHIN_POINTS, "mean_hold": MEAN_HOLD},
        met=all(
            each.off_points <= WITHIN_POINTS and each.mean_hold <= MEAN_HOLD[trace] for trace, each in ours.items()
        ),
        note=f"every call of each trace, one pass; 'covered' and 'mean hold' without the first {WARM_UP}",
    )


def calibrate(calls: Sequence[RecordedCall], rule: Estimating) -> Calibration:
    holds = []
    for call in calls:
        holds.append(rule.hold(call))
        rule.learn(call)
    warm = list(zip(holds, calls, strict=True))[WARM_UP:]
    covered = fmean(call.output_tokens <= hold for hold, call in warm)
    return Calibration(covered, fmean(hold for hold, _call in warm), fmean(holds))


def exceeded_likely(calls: Sequence[RecordedCall]) -> Exceeded:
    estimator = Estimator()
    estimator.keep_longest()
    holds: list[int] = []
    beyond: list[int] = []
    for call in calls:
        size = size_of(call)
        likely = estimator.estimate(size, call.came_s).output_likely
        if likely is not None:
            holds.append(likely)
            beyond += [call.output_tokens - likely] if call.output_tokens > likely else []
        estimator.observe(size, Usage(call.input_tokens, output_tokens=call.output_tokens), call.came_s)
    return Exceeded(len(holds), len(beyond), max(beyond, default=0), round(fmean(holds or [0]), 1))


def size_of(call: RecordedCall) -> CallSize:
    return CallSize("model", call.input_tokens * _BYTES_PER_TOKEN, max_output_tokens=MAX_TOKENS)


def show(trace: str, name: str, found: Calibration, options: Options) -> None:
    options.say(
        f"    {trace:12}{name:18}{found.covered:>9.2%}{found.mean_hold:>11.1f}{found.mean_hold_of_all:>9.1f}"
        f"{'   x' if found.off_points > WITHIN_POINTS else ''}"
    )


def figures(found: dict[str, Calibration]) -> dict[str, dict[str, float]]:
    return {
        trace: {"covered": round(each.covered, 4), "mean_hold": round(each.mean_hold, 1)}
        for trace, each in found.items()
    }
