"""Parameters: what stands behind a path's question mark, and times as people and programs write them.

One rule: what cannot be understood is said with its value and what is expected; nothing is guessed.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import overload
from urllib.parse import parse_qs

from headgate.core.errors import CallerError
from headgate.core.scopes import SCOPE_KINDS, unfit_scope
from headgate.ports import Clock

WILD = "*?[]!"
"""What makes a pattern of a scope that is asked for."""

MOST_COUNTED = 999_999_999
"""The largest number that a parameter may be: more than any run has rows."""

_SPAN = re.compile(r"(\d{1,6})([smhdw])")
_LATEST_S = 253_402_300_799.0  # the year 9999, the last that RFC 3339 can write
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def parameters(text: str, known: Sequence[str]) -> dict[str, str]:
    """Give the parameters of a URL's query.

    Raises:
        CallerError: one is not among those that are known, stands twice or has no value, or there are too many.
    """
    expected = f"known are {', '.join(known)}" if known else "this path takes none"
    try:
        found = parse_qs(text, keep_blank_values=True, max_num_fields=20)
    except ValueError as error:
        raise CallerError(f"more than 20 parameters; {expected}") from error
    unknown = sorted(found.keys() - set(known))
    if unknown:
        raise CallerError(f"unknown parameter {unknown[0][:50]!r}; {expected}")
    for name, values in found.items():
        if len(values) > 1:
            raise CallerError(f"parameter {name} stands {len(values)} times; expected it once")
        if not values[0]:
            # A script whose variable is empty would get the answer to another question.
            raise CallerError(f"parameter {name} has no value; leave it out, or say one")
    return {name: values[0] for name, values in found.items()}


def scopes_wanted(text: str) -> Callable[[str], bool]:
    """Give whether a scope is among those that `scope=account,key:ci,run:*` asks for: kinds and patterns; all without.

    Raises:
        CallerError: there is no such kind.
    """
    words = text.split(",") if text else []
    for word in words:
        kind, colon, _name = word.partition(":")
        if kind not in SCOPE_KINDS:
            # Nothing between two commas is a script's empty variable, as is nothing behind a colon.
            raise CallerError(
                f"scope={word[:50]!r}: expected some of {', '.join(SCOPE_KINDS)}, or scopes such as key:ci"
            )
        unfit = unfit_scope(word, WILD) if colon else None
        if unfit is not None:
            raise CallerError(f"scope={word[:50]!r}: {unfit}; all of a kind are {kind!r}")

    def is_wanted(scope: str) -> bool:
        plain = scope.partition("|")[0]
        return not words or any(
            fnmatchcase(scope if "|" in word else plain, word) if ":" in word else plain.startswith(f"{word}:")
            for word in words
        )

    return is_wanted


def count(found: Mapping[str, str], name: str, default: int, *, least: int = 0) -> int:
    """Give a parameter that is a whole number of at least `least`.

    Raises:
        CallerError: it is none.
    """
    text = found.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(MOST_COUNTED))):
        raise CallerError(f"{name}={text[:50]!r}: expected a whole number")
    if int(text) < least:
        raise CallerError(f"{name}={text}: expected a whole number from {least}")
    return int(text)


def instant_s(text: str | None, clock: Clock) -> float | None:
    """Give the instant that `7d` (so long ago), an RFC 3339 time with its offset or seconds since the epoch name.

    Raises:
        CallerError: it is none of these.
    """
    if text is None or not text:
        return None
    if _SPAN.fullmatch(text) is not None:
        return clock.now_s() - span_s(text)
    try:
        seconds = float(text)
    except ValueError:
        seconds = _moment(text).timestamp()
    if not 0 <= seconds <= _LATEST_S:
        raise CallerError(f"{text[:50]!r} is no time: seconds since the epoch lie between 0 and {_LATEST_S:.0f}")
    return seconds


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise CallerError(
            f"{text[:50]!r} is no time: write 30m, 12h, 7d, 2026-11-01T00:00:00Z or seconds since the epoch"
        ) from None
    if moment.tzinfo is None:
        # Whoever leaves it out means a clock on some wall, and rarely that of Greenwich.
        at = moment.isoformat()
        raise CallerError(f"{text[:50]!r} has no offset: write {at}Z for UTC, or {at}+02:00")
    return moment


def coming_s(text: str, clock: Clock) -> float:
    """Give the instant that `now`, `2h` (from now), an RFC 3339 time with its offset or seconds since the epoch name.

    Raises:
        CallerError: it is none of these.
    """
    if text == "now":
        return clock.now_s()
    if _SPAN.fullmatch(text) is not None:
        return clock.now_s() + span_s(text)
    found = instant_s(text, clock)
    if found is None:
        raise CallerError("a time is missing: write now, 2h, 2026-12-01T22:00:00Z or seconds since the epoch")
    return found


def span_s(text: str) -> int:
    """Give the seconds that `30m`, `12h` or `7d` name.

    Raises:
        CallerError: it is not of that form.
    """
    span = _SPAN.fullmatch(text)
    if span is None:
        raise CallerError(f"{text[:50]!r} is no length of time: write 30s, 15m, 12h, 7d or 2w")
    return int(span[1]) * _SECONDS[span[2]]


@overload
def rfc3339(seconds: float) -> str: ...


@overload
def rfc3339(seconds: float | None) -> str | None: ...


def rfc3339(seconds: float | None) -> str | None:
    """Give an instant as RFC 3339 with milliseconds."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
