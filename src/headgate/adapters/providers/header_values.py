"""Values in headers about limits: amounts, shares and instants out of what may be anything.

One rule: what cannot be true is None and never an exception; a wrong header must not fail a call.
Which header says what is its dialect's affair.
"""

import math
import re
from collections.abc import Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple

from headgate.core.notices import DAY_S
from headgate.ports import Headers

__all__ = ["MOST_RATE_RESET_S", "Clocks", "amount", "lower_case", "share", "word"]

MOST_RATE_RESET_S = 31 * DAY_S
"""No rate takes longer than a month to be full again (vendors sell them per minute and day), nor lasts any overage."""

SLACK_S = 60.0
"""How far a reset may lie beyond the longest that is possible: two clocks never agree, and resets are rounded up."""

_TOLERATED_SKEW_S = 10
_AMOUNT = re.compile(rb"[0-9]{1,15}")
_NUMBER = re.compile(rb"[0-9]{1,15}(?:\.[0-9]{1,15})?")
_WORD = re.compile(rb"[A-Za-z0-9_.-]{1,64}")
# The units of Go's time.Duration.String, in which OpenAI writes; days as well, for those who are only compatible.
_DURATION = re.compile(
    rb"(?:(?P<d>[0-9]{1,4})d)?(?:(?P<h>[0-9]{1,6})h)?(?:(?P<m>[0-9]{1,8})m(?!s))?"
    rb"(?:(?P<s>[0-9]{1,10}(?:\.[0-9]{1,12})?)s)?(?:(?P<ms>[0-9]{1,12}(?:\.[0-9]{1,9})?)ms)?"
)
_UNITS_S = {"d": 86_400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_MOST_SHARE = 100.0


def lower_case(headers: Headers) -> dict[bytes, bytes]:
    """Give headers by their names in lower case, values without white space around them; of two the last counts."""
    return {name.lower(): value.strip() for name, value in headers}


def amount(value: bytes | None) -> int | None:
    """Read a whole number, 0 or more."""
    return int(value) if value is not None and _AMOUNT.fullmatch(value) else None


def share(value: bytes | None, whole: float = 1.0) -> float | None:
    """Read a share of `whole` (100 for a percentage); above 1 is possible, a hundred times as much is not."""
    number = _number(value)
    return number / whole if number is not None and number <= _MOST_SHARE * whole else None


def word(value: bytes | None) -> str | None:
    """Read a word of a provider's own: it may go into logs."""
    return value.decode("ascii") if value is not None and _WORD.fullmatch(value) else None


class Clocks(NamedTuple):
    """This machine's time and the provider's at the moment in which an answer came."""

    now_s: float
    theirs_s: float

    @classmethod
    def read(cls, named: Mapping[bytes, bytes], now_s: float) -> "Clocks":
        """Read the provider's time off the answer's `date`, where the two differ by more than an answer takes.

        Where they do, the difference is taken in steps of 10 s, so that the second in which an answer happens to come
        does not make another instant of each one; it is rounded so that a reset seems later rather than earlier.
        """
        try:
            ahead_s = parsedate_to_datetime(named[b"date"].decode("ascii")).timestamp() - now_s
        except (KeyError, ValueError, TypeError, OverflowError):
            return cls(now_s, now_s)  # absent, or no date
        if abs(ahead_s) < _TOLERATED_SKEW_S:
            return cls(now_s, now_s)
        return cls(now_s, now_s + math.floor(ahead_s / _TOLERATED_SKEW_S) * _TOLERATED_SKEW_S)

    def at_epoch(self, value: bytes | None, most_s: float) -> float | None:
        """Read seconds since the epoch that lie ahead, by at most `most_s`."""
        return self._here(_number(value), most_s)

    def at_date(self, value: bytes | None, most_s: float) -> float | None:
        """Read an RFC 3339 instant that lies ahead, by at most `most_s`; seconds since the epoch will do."""
        number = _number(value)
        if number is None and value is not None:
            try:
                told = datetime.fromisoformat(value.decode("ascii"))
                number = told.timestamp() if told.tzinfo is not None else None
            except (ValueError, OverflowError):
                return None
        return self._here(number, most_s)

    def after(self, value: bytes | None, most_s: float) -> float | None:
        """Read a duration such as `6m0s`, `12ms` or `7.5` (seconds) as the instant of its end, at most `most_s` off."""
        wait_s = _number(value)
        if wait_s is None and value and (found := _DURATION.fullmatch(value)):
            wait_s = sum(float(told) * _UNITS_S[unit] for unit, told in found.groupdict().items() if told is not None)
        return self.now_s + wait_s if wait_s and wait_s <= most_s + SLACK_S else None

    def _here(self, told_s: float | None, most_s: float) -> float | None:
        if told_s is None or not 0 < told_s - self.theirs_s <= most_s + SLACK_S:
            return None
        return self.now_s + (told_s - self.theirs_s)


def _number(value: bytes | None) -> float | None:
    return float(value) if value is not None and _NUMBER.fullmatch(value) else None
