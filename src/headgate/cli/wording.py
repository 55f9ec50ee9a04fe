"""Wording: how figures, times and limits are written for people, the same on the terminal and on the page.

One rule: short, and never less true than the figure: an unknown amount is a question mark, not 0.
"""

from collections.abc import Mapping
from typing import Any

from headgate.core.amounts import MICRO_USD_PER_USD
from headgate.core.wording import level_text, limit_text, per_text, scope_text, span_text

__all__ = [
    "amount_text",
    "clock_text",
    "count_text",
    "duration_text",
    "learned_text",
    "level_text",
    "limit_text",
    "per_text",
    "scope_text",
    "share_text",
    "span_text",
    "told_text",
    "usd_text",
    "why_learned_text",
]

_SCALES = ((1_000_000_000, "G"), (1_000_000, "M"), (10_000, "k"))
_PRECISE_BELOW = 100
_FOUR_DIGITS_FROM_MICRO_USD = 100
_MINUTE_S, _HOUR_S, _DAY_S = 60, 3_600, 86_400


def count_text(count: float) -> str:
    """Write a count in up to four digits: 9,999, 12.3k, 41.2M."""
    for scale, letter in _SCALES:
        if abs(count) >= scale:
            divisor = 1_000 if letter == "k" else scale
            value = count / divisor
            return f"{value:.1f}{letter}" if abs(value) < _PRECISE_BELOW else f"{value:,.0f}{letter}"
    return f"{count:,.0f}"


def usd_text(micro_usd: int | None, unknown: int = 0) -> str:
    """Write micro-dollars: to the cent from a dollar on, below it to as many digits as tell it from nothing.

    `unknown` calls make it a lower bound.
    """
    if micro_usd is None:
        return "?"
    sign, micro_usd = ("-", -micro_usd) if micro_usd < 0 else ("", micro_usd)
    dollars = micro_usd / MICRO_USD_PER_USD
    if not micro_usd or micro_usd >= MICRO_USD_PER_USD:
        text = f"{dollars:,.2f}"
    elif micro_usd >= _FOUR_DIGITS_FROM_MICRO_USD:
        text = f"{dollars:.4f}"
    else:
        text = f"{dollars:.6f}".rstrip("0")
    return f"{sign}${text} + ?" if unknown else f"{sign}${text}"


def amount_text(dimension: str, amount: float) -> str:
    """Write an amount of a dimension."""
    return usd_text(round(amount)) if dimension == "micro_usd" else count_text(amount)


def share_text(share: float | None) -> str:
    """Write a share as a percentage; all but all is 99.9 %, not 100 %."""
    if share is None:
        return "-"
    percent = share * 100
    if 99 < percent < 100:  # noqa: PLR2004 - where rounding would say something else
        return f"{int(percent * 10) / 10:.1f} %"
    return f"{percent:.0f} %"


def duration_text(seconds: float) -> str:
    """Write a length of time: 0 s, 42 ms, 1.42 s, 12 s, 3:05, 2:03:05, 3 d 04:00."""
    if seconds < 1:
        return f"{round(seconds * 1000)} ms" if seconds >= 0.0005 else "0 s"  # noqa: PLR2004 - half a millisecond
    if seconds < 10:  # noqa: PLR2004 - below it the hundredths are worth reading
        return f"{seconds:.2f} s"
    return f"{round(seconds)} s" if round(seconds) < _MINUTE_S else clock_text(seconds)


def clock_text(seconds: float) -> str:
    """Write a length of time as a stopwatch does: 0:09, 3:05, 2:03:05, 3 d 04:00."""
    whole = round(seconds)
    minutes, rest_s = divmod(whole, _MINUTE_S)
    if whole < _HOUR_S:
        return f"{minutes}:{rest_s:02d}"
    hours, minutes = divmod(minutes, 60)
    if whole < _DAY_S:
        return f"{hours}:{minutes:02d}:{rest_s:02d}"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours:02d}:{minutes:02d}"


_SOURCES = {
    "header": "headers",
    "429": "429s",
    "latency": "overload or slow answers",
    "plan": "the plan is spent",
    "start": "slow start after a closing",
}


def learned_text(view: Mapping[str, Any]) -> str:
    """Write how much a limit's provider was found to give, as `/api/v1/limits` has it; nothing if it was not."""
    if view.get("learned") is None:
        return ""
    models = f" for {view['learned_models']}" if view.get("learned_models") else ""
    return f"{amount_text(view['dimension'], view['learned'])}{per_text(view['per'])}{models}"


def why_learned_text(view: Mapping[str, Any]) -> str:
    """Write what taught that, since when, changed when (UTC), closed until when; nothing if nothing was learned."""
    source = view.get("learned_from")
    if source is None:
        return ""
    since = f", since {view['learned_since'][11:16]}" if view.get("learned_since") else ""
    changed = view.get("learned_changed")
    if changed and changed[:16] != view["learned_since"][:16]:
        since += f", changed {changed[11:16]}"
    closed = f", closed until {view['closed_until'][11:19]}" if view.get("closed_until") else ""
    return f"{_SOURCES.get(source, source)}{since}{closed}"


def told_text(error: str, run: str) -> str:
    """Write an error for readers of a run's report: they know which run it is of."""
    return error.replace(f" in run:{run}", "")


def hold_text(hold: str | None) -> str:
    """Mark a window that holds what is likely, and may be exceeded: `, likely`, or by little: `, guarded`."""
    return f", {hold}" if hold in ("likely", "guarded") else ""
