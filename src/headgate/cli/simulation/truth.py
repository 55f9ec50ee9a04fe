"""What providers are really like, as options say it: limits of their own, outages, faults.

One rule: an option that cannot be used is told with its value and what is expected, before anything is played.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import replace

from headgate.cli.wording import span_text
from headgate.core.amounts import Dimension
from headgate.core.errors import CallerError
from headgate.sim.provider import FAULT_KINDS, Fault, FaultKind, Outage, Terms, Truth

__all__ = ["check_outages", "read_truth"]

_ANY = "*"
_MOST_SCALE = 1000.0
_MOST_AMOUNT = 10**9
_WORDS: dict[str, Dimension] = {
    "requests_per_minute": "requests",
    "input_tokens_per_minute": "input_tokens",
    "output_tokens_per_minute": "output_tokens",
    "tokens_per_minute": "tokens",
}
_TIME = re.compile(r"(\d+(?:\.\d+)?)(s|m|h|d)?")
_UNITS_S = {None: 1.0, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_MOST_S = 366 * 86_400.0


def read_truth(limits: Sequence[str], outages: Sequence[str], faults: Sequence[str], *, tells: bool) -> Truth:
    """Read `--provider-limits`, `--outage` and `--fault`.

    Raises:
        CallerError: one cannot be used.
    """
    terms: dict[str, Terms] = {}
    said: dict[tuple[str, str], str] = {}
    for text in limits:
        account, _, what = text.rpartition(":")
        for part in what.split(","):
            word = part.partition("=")[0] if "=" in part else "a factor"
            before = said.setdefault((account or _ANY, word), text)
            if before is not text:
                of = f"account {account}" if account else "all accounts"
                raise CallerError(
                    f"--provider-limits {text}: --provider-limits {before} says {word} of {of} already; say it once"
                )
        terms[account or _ANY] = _terms(terms.get(account or _ANY, Terms()), what, text)
    return Truth(terms, tuple(map(_outage, outages)), tuple(map(_fault, faults)), tells)


def check_outages(truth: Truth, ends_s: float | None) -> None:
    """Return if every outage begins before the end, where that is known (else it is noted when all was played).

    Raises:
        CallerError: one does not, and nothing would be down.
    """
    for outage in truth.outages:
        if ends_s is not None and outage.from_s >= ends_s:
            raise CallerError(
                f"--outage: one begins after {span_text(outage.from_s)}, and the workload ends after "
                f"{span_text(ends_s)}: nothing would be down; let it begin sooner"
            )


def _terms(before: Terms, what: str, text: str) -> Terms:
    """Read a factor, or amounts a minute."""
    if "=" not in what:
        scale = _number(what)
        if scale is None or not 1 / _MOST_SCALE <= scale <= _MOST_SCALE:
            raise CallerError(
                f"--provider-limits {text}: expected a factor from 0.001 to 1000 such as 0.8, or amounts such as "
                "input_tokens_per_minute=400000; either after ACCOUNT: where it is of one account"
            )
        return replace(before, limits_scale=scale)
    amounts = dict(before.per_minute)
    for part in what.split(","):
        word, _, value = part.partition("=")
        amount = _number(value.replace("_", ""))
        if word not in _WORDS or amount is None or amount != int(amount) or not 1 <= amount <= _MOST_AMOUNT:
            raise CallerError(
                f"--provider-limits {text}: {part!r}; expected one of {', '.join(_WORDS)}, = and a whole number from 1"
                f" to {_MOST_AMOUNT:,}"
            )
        amounts[_WORDS[word]] = int(amount)
    return replace(before, per_minute=amounts)


def _outage(text: str) -> Outage:
    kind: FaultKind = "529"
    *account, last = text.split(":")
    if last in FAULT_KINDS:
        kind = last
    else:
        account.append(last)
    times = [_time_s(part) for part in account[-2:]]
    if len(times) < 2 or times[0] is None or not times[1]:  # noqa: PLR2004 - from when, for how long
        raise CallerError(
            f"--outage {text}: expected [ACCOUNT:]FROM:FOR[:KIND] such as 10m:2m or main:1h:90s:500; a time is a "
            f"number with s, m, h or d, up to 366 days, and KIND one of {', '.join(FAULT_KINDS)}"
        )
    return Outage(times[0], times[1], kind, ":".join(account[:-2]) or None)


def _fault(text: str) -> Fault:
    named, _, value = text.rpartition("=")
    account, _, kind = named.rpartition(":")
    share = _number(value)
    if kind not in FAULT_KINDS or share is None or not 0 <= share <= 1:
        raise CallerError(
            f"--fault {text}: expected [ACCOUNT:]KIND=SHARE such as 529=0.02; KIND is one of {', '.join(FAULT_KINDS)}, "
            "SHARE a part from 0 to 1 of the calls"
        )
    return Fault(kind, share, account or None)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _time_s(text: str) -> float | None:
    found = _TIME.fullmatch(text)
    if found is None:
        return None
    seconds = float(found[1]) * _UNITS_S[found[2]]
    return seconds if seconds <= _MOST_S else None
