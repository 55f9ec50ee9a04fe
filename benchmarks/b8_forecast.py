"""Row B8: how wrong the projection of a 5 h window is 1, 2 and 3 h into it, and whether its bands hold their promise.

One rule: no projection sees a slot that is not over. The trace is ServeGen's 162 clients summed, in slots of 10 min; a
window begins at every whole hour from the third day on, and its error is |projected - used| / used. Two baselines of a
line each stand beside Headgate: the window's rate so far, times the time left (claude-monitor's projection), and an
EWMA of the rate, whose weight is the one that served it best here.
"""

import csv
import gzip
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from statistics import fmean

from benchmarks.__main__ import Options, Result
from headgate.core.forecast import BAND, Forecaster

TITLE = "error of a projected 5 h window at 1, 2 and 3 h, beside claude-monitor's projection and an EWMA"
TRACE = Path("traces") / "servegen_m-large_rates.csv.gz"
TARGET = {"error": "below both rivals at 1, 2 and 3 h", "band": f"{BAND:.0%} of windows, within 2 points"}

SLOT_S, HOUR_S = 600, 3600
HOUR_SLOTS = HOUR_S // SLOT_S
WINDOW_SLOTS = 5 * HOUR_SLOTS
HOURS_IN = (1, 2, 3)
WARM_UP_SLOTS = 2 * 24 * HOUR_SLOTS
EWMA_WEIGHT = 0.3
_BAND_TOLERANCE = 0.02
_PARTS = 5
"""Beside the sum of all clients, each fifth of them: Headgate's constants were chosen on the sum."""


@dataclass(slots=True)
class Score:
    """Errors by rival, and whether the windows ended in Headgate's band, by hours into the window."""

    errors: dict[str, dict[int, list[float]]] = field(default_factory=dict)
    held: dict[int, list[bool]] = field(default_factory=dict)

    def note(self, hours: int, used: int, projected: dict[str, float], *, in_band: bool) -> None:
        for name, units in projected.items():
            self.errors.setdefault(name, {}).setdefault(hours, []).append(abs(units - used) / used)
        self.held.setdefault(hours, []).append(in_band)

    def error(self, name: str) -> dict[str, float]:
        return {f"{hours} h": round(100 * fmean(self.errors[name][hours]), 2) for hours in HOURS_IN}

    def coverage(self) -> dict[str, float]:
        return {f"{hours} h": round(100 * fmean(self.held[hours]), 1) for hours in HOURS_IN}


def run(options: Options) -> Result:
    path = None if options.data is None else options.data / TRACE
    if path is None or not path.is_file():
        return Result(None, None, TARGET, met=False, note=f"not measured: --data has no {TRACE}")
    clients = read_clients(path)
    whole = replayed(summed(clients))
    show("all clients", whole, options)
    ours, rivals = whole.error("headgate"), {name: whole.error(name) for name in ("claude-monitor", "ewma")}
    coverage = whole.coverage()
    better = all(ours[hour] < rival[hour] for rival in rivals.values() for hour in ours)
    kept = all(abs(share / 100 - BAND) <= _BAND_TOLERANCE for share in coverage.values())
    wins = 0
    if not options.quick:
        for part in range(_PARTS):
            score = replayed(summed(clients[part::_PARTS]))
            show(f"every fifth client from {part}", score, options)
            wins += sum(
                score.error("headgate")[hour] < min(score.error(name)[hour] for name in rivals) for hour in ours
            )
    windows = len(whole.held[HOURS_IN[0]])
    parts = (
        "" if options.quick else f"; better than both in {wins} of {_PARTS * len(HOURS_IN)} on fifths of the clients"
    )
    return Result(
        headgate={"error_percent": ours, "in_band_percent": coverage},
        rival={name: {"error_percent": errors} for name, errors in rivals.items()},
        target=TARGET,
        met=better and kept,
        note=f"{windows} windows of {len(clients)} clients{parts}; Headgate's constants were chosen on this sum",
    )


def read_clients(path: Path) -> list[list[float]]:
    """Read each client's requests in every slot."""
    clients: dict[str, list[float]] = {}
    with gzip.open(path, "rt", newline="") as lines:
        for row in csv.DictReader(lines):
            clients.setdefault(row["client"], []).append(float(row["requests_per_s"]) * SLOT_S)
    return list(clients.values())


def summed(clients: Sequence[Sequence[float]]) -> list[int]:
    return [round(sum(slot)) for slot in zip(*clients, strict=True)]


def replayed(slots: Sequence[int]) -> Score:
    """Let the projections live through the trace, slot by slot."""
    totals = [0, *accumulate(slots)]
    forecaster = Forecaster(WINDOW_SLOTS * SLOT_S, SLOT_S)
    score = Score()
    ewma = float(slots[0])
    for index, units in enumerate(slots):
        forecaster.observe(index * SLOT_S, units)
        ewma += EWMA_WEIGHT * (units - ewma)
        for hours in HOURS_IN:
            elapsed = hours * HOUR_SLOTS
            begin = index + 1 - elapsed
            end = begin + WINDOW_SLOTS
            if begin < WARM_UP_SLOTS or begin % HOUR_SLOTS or end > len(slots) or totals[end] == totals[begin]:
                continue
            used = totals[begin + elapsed] - totals[begin]
            ours = forecaster.forecast(used, begin * SLOT_S, end * SLOT_S, (index + 1) * SLOT_S)
            assert ours.expected is not None
            assert ours.high is not None
            projected = {
                "headgate": float(ours.expected),
                "claude-monitor": used * WINDOW_SLOTS / elapsed,
                "ewma": used + ewma * (WINDOW_SLOTS - elapsed),
            }
            actual = totals[end] - totals[begin]
            score.note(hours, actual, projected, in_band=ours.low <= actual <= ours.high)
    return score


def show(name: str, score: Score, options: Options) -> None:
    heads = "".join(f"{f'{hours} h':>8}" for hours in HOURS_IN)
    options.say(f"    {name + ', mean error %':44}{heads}")
    for rival in score.errors:
        options.say(f"      {rival:42}" + "".join(f"{error:>8.2f}" for error in score.error(rival).values()))
    options.say(
        f"      {f'in the band of {BAND:.0%}, %':42}" + "".join(f"{share:>8.1f}" for share in score.coverage().values())
    )
