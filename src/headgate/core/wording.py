"""Wording: how limits and lengths of time are named for people, the same in every refusal, table and page.

One rule: a name has all that tells two limits of one configuration apart, and nothing of how levels are kept.
"""

import re

__all__ = ["level_text", "limit_text", "per_text", "scope_text", "seconds_text", "span_text"]

_DIMENSIONS = {
    "requests": "requests",
    "input_tokens": "input tokens",
    "output_tokens": "output tokens",
    "tokens": "tokens",
    "micro_usd": "dollars",
    "slots": "slots",
}
_PERIODS = {"1s": "/s", "60s": "/min", "3600s": "/h", "86400s": "/24 h", "lifetime": " in all", "at once": " at once"}
_LENGTH = re.compile(r"(?:([a-z]+)-)?(\d+)s(?:\+(\d+))?")
_SPANS = {None: "", "rate": "", "rolling": " (rolling)", "every": " (fixed)", "plan": " (plan)"}
_MINUTE_S, _HOUR_S, _DAY_S = 60, 3_600, 86_400


def span_text(seconds: float) -> str:
    """Write a length of time in words, in its two largest units: 45 s, 12 min, 2 h 10 min, 3 d 4 h."""
    whole = round(seconds)
    if whole < _MINUTE_S:
        return f"{whole} s"
    if whole < _HOUR_S - _MINUTE_S / 2:
        return f"{round(whole / _MINUTE_S)} min"
    large_s, large, small_s, small = _HOUR_S, "h", _MINUTE_S, "min"
    if whole >= _DAY_S - _MINUTE_S / 2:
        large_s, large, small_s, small = _DAY_S, "d", _HOUR_S, "h"
    count, rest = divmod(round(whole / small_s), large_s // small_s)
    return f"{count} {large} {rest} {small}" if rest else f"{count} {large}"


def seconds_text(seconds: float) -> str:
    """Write a length of time that may be very short: 0.0123 s, 4.5 s, 4 h 45 min."""
    return f"{seconds:.3g} s" if seconds < _MINUTE_S - 1 / 2 else span_text(seconds)


def limit_text(scope: str, models: str | None, dimension: str, run: str | None = None) -> str:
    """Name a limit: `account:main claude-opus* input tokens`; beside a `run`, what is within it is not said to be."""
    pool = "" if models in (None, "*") else f" {models}"
    return f"{scope_text(scope, run)}{pool} {_DIMENSIONS.get(dimension, dimension)}"


def scope_text(scope: str, run: str | None = None) -> str:
    """Name a scope, with whose it is where that is somebody else than the `run` shown: `agent:docs in run:7f3a`."""
    named, *owners = scope.split("|")
    if run is not None and f"run:{run}" in (named, *owners):
        return named
    return " in ".join((named, *owners))


def level_text(name: str) -> str:
    """Name a limit by the name of its level, with what its amount is over: `account:main output tokens/min`."""
    if name.count(" ") < 3:  # noqa: PLR2004 - no level's: scope, models, dimension and manner
        return name
    scope, models, dimension, manner = name.split(" ", 3)
    per = "at once" if manner == "gauge" else manner.removeprefix("rate-")
    return limit_text(scope, models, dimension) + per_text(per)


def per_text(per: str) -> str:
    """Write what an amount is for: `/min`, `/5 h (plan)`, `/7 d (rolling)`, `/week (Europe/Berlin)`, ` in all`.

    A calendar's hour and day are `/hour` and `/day`, any 3,600 s are `/h` and any 86,400 s `/24 h`.
    """
    if per in _PERIODS:
        return _PERIODS[per]
    length = _LENGTH.fullmatch(per)
    if length is None:
        unit, at, zone = per.partition("@")
        return f"/{unit} ({zone})" if at else f"/{unit}"
    how, period, anchor = length.groups()
    span = _PERIODS.get(f"{period}s") or f"/{_whole(int(period))}"
    if anchor is not None:
        return f"{span} (fixed, from {_begin(int(period), int(anchor))})"
    return span + _SPANS.get(how, f" ({how})")


def _begin(period_s: int, anchor_s: int) -> str:
    """Say in UTC when fixed windows begin: a week's `Mon 06:00`, a day's `06:00`, and what is shorter `+10 min`."""
    if period_s % _DAY_S:
        return f"+{_whole(anchor_s)}"
    days, second = divmod(anchor_s, _DAY_S)
    clock = f"{second // _HOUR_S:02}:{second // _MINUTE_S % 60:02}" + (f":{second % 60:02}" if second % 60 else "")
    # The epoch began on a Thursday.
    return f"{('Thu', 'Fri', 'Sat', 'Sun', 'Mon', 'Tue', 'Wed')[days % 7]} {clock}" if period_s > _DAY_S else clock


def _whole(seconds: int) -> str:
    """Write a length of time exactly, in the largest unit that divides it."""
    for unit_s, unit in ((_DAY_S, "d"), (_HOUR_S, "h"), (_MINUTE_S, "min")):
        if seconds % unit_s == 0:
            return f"{seconds // unit_s} {unit}"
    return f"{seconds} s"
