"""Alerts: a window or budget has passed a threshold, said once for each window.

One rule: what was said is remembered with the window it was said of, so that a settlement that lowers the use does not
let it be said again. Whom to tell is not known here.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from headgate.core.amounts import Dimension
from headgate.core.instants import NS_PER_S, to_ns
from headgate.core.limits import Level, Limit, Rolling, Window

THRESHOLDS_PERCENT = (50, 80, 95)

Said = tuple[int, int]
"""What was said of one limit: the window's mark, and the highest threshold. Whole numbers, as a level."""


class Alert(NamedTuple):
    """A limit's use has passed a threshold; `resets_ns` is None when it never resets."""

    limit: str
    scope: str
    dimension: Dimension
    threshold_percent: int
    used: int
    amount: int
    resets_ns: int | None


class Use(NamedTuple):
    """How much of a budget is used, and what is held for calls on their way."""

    limit: str
    used: int
    held: int
    amount: int


class Verdict(NamedTuple):
    """What a check of budgets found: the fullest of them, those that are spent, and those past what was asked."""

    worst: Use | None
    spent: tuple[Use, ...]
    past: tuple[Use, ...]

    @property
    def limited(self) -> bool:
        """Whether somebody has to wait or look: the command line ends with 75 then."""
        return bool(self.spent or self.past)


def alerts_due(
    limits: Iterable[Limit],
    levels: Mapping[str, Level],
    said: Mapping[str, Said],
    now_s: float,
    thresholds_percent: Sequence[int] = THRESHOLDS_PERCENT,
) -> tuple[list[Alert], dict[str, Said]]:
    """Give the alerts that are due, and all that has been said by now (what belongs to windows that are over is gone).

    Counted is what was used, with what is pending; what is held for calls on their way mostly comes back. Of several
    thresholds passed at once only the highest is said: whoever reads that 95 % are used knows that 50 and 80 % are, and
    three warnings of one moment are two too many.
    """
    now_ns = to_ns(now_s)
    due: list[Alert] = []
    remembered: dict[str, Said] = {}
    for limit in limits:
        if not isinstance(limit, Window | Rolling):
            continue
        level = levels.get(limit.name)
        reading = limit.read(level, now_ns)
        mark, highest = said.get(limit.name, (0, 0))
        if not _is_same_window(limit, level, mark, now_ns):
            mark, highest = _mark(limit, level, now_ns), 0
        passed = _passed(limit, reading.used, thresholds_percent)
        if passed > highest:
            due.append(
                Alert(limit.name, limit.scope, limit.dimension, passed, reading.used, limit.amount, reading.resets_ns)
            )
        if max(passed, highest):
            remembered[limit.name] = (mark, max(passed, highest))
    return due, remembered


def said_after_a_raise(
    limit: Window | Rolling,
    level: Level | None,
    said: Said,
    now_s: float,
    thresholds_percent: Sequence[int] = THRESHOLDS_PERCENT,
) -> Said | None:
    """Give what counts as said of a limit that has more now: of its new thresholds those that it is past already."""
    mark, highest = said
    passed = _passed(limit, limit.read(level, to_ns(now_s)).used, thresholds_percent)
    return (mark, min(passed, highest)) if min(passed, highest) else None


def _passed(limit: Window | Rolling, used: int, thresholds_percent: Sequence[int]) -> int:
    return max((each for each in thresholds_percent if used * 100 >= each * limit.amount), default=0)


def check(uses: Iterable[Use], at_percent: int = 100) -> Verdict:
    """Say how budgets stand: spent is one of which all is used, past one of which `at_percent` is."""
    every = sorted(uses, key=lambda use: (-_share(use), use.limit))
    return Verdict(
        every[0] if every else None,
        tuple(use for use in every if use.used >= use.amount),
        tuple(use for use in every if use.used * 100 >= at_percent * use.amount),
    )


def _share(use: Use) -> float:
    return use.used / use.amount if use.amount else 1.0


def _mark(limit: Window | Rolling, level: Level | None, now_ns: int) -> int:
    """Tell a window from the one before it: by when it opened; a rolling one by when something was first said."""
    if isinstance(limit, Rolling):
        return now_ns
    return level[0] if level is not None else 0


def _is_same_window(limit: Window | Rolling, level: Level | None, mark: int, now_ns: int) -> bool:
    if isinstance(limit, Rolling):
        # Nothing of what was used then is left when a whole period and a slice have passed.
        return now_ns - mark < limit.period_s * NS_PER_S * (limit.SLICES + 1) // limit.SLICES
    return level is not None and level[0] == mark and now_ns < level[1]
