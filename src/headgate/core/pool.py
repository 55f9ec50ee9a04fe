"""Pool: which of several accounts serves a call, and why not the others.

One rule: a choice is a pure function of what each account could do for the call now; seconds are what they are compared
in: those the call would wait, and those of the account's scarcest rate that a cold prompt cache costs there.

Health is a circuit breaker for each account and model: some failures in a row open it, the first call after the pause
closes or opens it again.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from headgate.core.wording import seconds_text

SAME_S = 0.5
"""Accounts whose seconds differ by no more are equally fast; then price, pace and headroom decide."""

SAME_PRICE = 0.02
"""Prices that differ by no more than this part are one."""

SAME_PACE = 0.02
"""Plan windows whose distance from their lines differs by no more than this part of the window are one."""

FAILURES_TO_OPEN = 5
FIRST_PAUSE_S = 15.0
MOST_PAUSE_S = 300.0


@dataclass(frozen=True, slots=True)
class Option:
    """What an account could do for a call.

    It could go in `wait_s` (infinite: never, `refused` says why); `cost_s` is what it takes more of the account's
    scarcest rate because its prompt cache is elsewhere. `price_micro_usd` is None where no price is known. `behind` is
    how far the account's plan windows are behind an even pace towards their resets, as a part of the window (below 0:
    ahead; None: it has none, and counts as being on its line); `headroom` the smallest free part of its limits.
    `closed_until_s`: its circuit is open, or the provider said when to come back (infinite: one call tries it just
    now), `closed_because` of what; with `is_out` it will not serve before its owner does something. `is_free`: it has
    room for the call now and nobody waits there. `is_late`: the call's deadline is before its turn.
    """

    account: str
    wait_s: float
    cost_s: float = 0.0
    price_micro_usd: int | None = None
    behind: float | None = None
    headroom: float = 1.0
    over_soft_ceiling: bool = False
    is_warm: bool = False
    closed_until_s: float | None = None
    refused: str | None = None
    failed_before: bool = False
    closed_because: str = "failures"
    is_out: bool = False
    is_free: bool = False
    is_late: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """The account that was chosen and why, and for each other one why it was not."""

    account: str
    why: str
    others: tuple[tuple[str, str], ...] = ()


def choose(options: Sequence[Option], now_s: float) -> Choice | None:
    """Choose an account, in the order of `options` where nothing else decides; None if none can ever serve the call.

    An account that is out, too late, closed, that failed for this call or is over its soft ceiling comes after those of
    which none of that is true, in this order of weight. Among these the least seconds go first; among equally fast ones
    the cheapest, then the one with its prompt cache, then the one furthest behind its plan's line, then the one with
    most headroom.
    """
    able = [option for option in options if option.refused is None and not math.isinf(option.wait_s)]
    if not able:
        return None
    rank = min(_standing(option, now_s) for option in able)
    standing = [option for option in able if _standing(option, now_s) == rank]
    fastest_s = min(map(_seconds, standing))
    left = [option for option in standing if _seconds(option) <= fastest_s + SAME_S]
    why = _why_fast(left, standing)
    left, why = _cheapest(left, why)
    left, why = _warm(left, why)
    left, why = _furthest_behind(left, why)
    chosen = max(left, key=lambda option: option.headroom)  # of equals the first
    if len(left) > 1 and chosen.headroom > min(option.headroom for option in left):
        why = f"of equals it has most headroom, {chosen.headroom:.0%} of its scarcest limit"
    others = tuple((option.account, _why_not(option, chosen, now_s)) for option in options if option is not chosen)
    return Choice(chosen.account, why, others)


def better(options: Sequence[Option], here: str, now_s: float) -> Choice | None:
    """Say where a call that waits at an account should go instead; None where it stays.

    Moving has to pay: the other has room now, is faster by more than SAME_S, or this one has become ill or too late.
    """
    choice = choose(options, now_s)
    if choice is None or choice.account == here:
        return None
    named = {option.account: option for option in options}
    mine, there = named[here], named[choice.account]
    is_faster = there.is_free or _seconds(there) + SAME_S < _seconds(mine)
    return choice if is_faster or _standing(there, now_s) < _standing(mine, now_s) else None


def expected_wait_s(earliest_s: float, until_s: float, so_far_s: float) -> float:
    """Give for how long a call is taken to wait that can go between `earliest_s` and `until_s` from now.

    What only the end of other calls decides is taken to last as long again as it has lasted so far. So a call leaves
    its prompt cache when it has waited as long as reading the prompt anew costs, and loses at most twice the least that
    it could have lost, whenever the others end (ski rental, Karlin et al., Algorithmica 1988).
    """
    return max(earliest_s, min(until_s, so_far_s))


def _standing(option: Option, now_s: float) -> int:
    return (
        16 * option.is_out
        + 8 * option.is_late
        + 4 * _is_closed(option, now_s)
        + 2 * option.failed_before
        + option.over_soft_ceiling
    )


def _is_closed(option: Option, now_s: float) -> bool:
    return option.closed_until_s is not None and option.closed_until_s > now_s


def _seconds(option: Option) -> float:
    return option.wait_s + option.cost_s


def _why_fast(left: Sequence[Option], standing: Sequence[Option]) -> str:
    if len(standing) == 1:
        return "it is the only one that can serve the call now"
    if len(left) == 1 and left[0].is_warm:
        return "it has the session's prompt cache, and waiting for it costs less than reading the prompt anew"
    if len(left) == 1:
        return f"it serves the call soonest, in {seconds_text(left[0].wait_s)}"
    return "it came first among equals"


def _cheapest(left: list[Option], why: str) -> tuple[list[Option], str]:
    known = [option.price_micro_usd for option in left if option.price_micro_usd is not None]
    if not known:
        return left, why
    least = min(known)
    cheap = [
        option
        for option in left
        if option.price_micro_usd is not None and option.price_micro_usd <= least * (1 + SAME_PRICE)
    ]
    return cheap, why if len(cheap) == len(left) else f"of equally fast ones it is the cheapest, at ${least / 1e6:.6f}"


def _warm(left: list[Option], why: str) -> tuple[list[Option], str]:
    warm = [option for option in left if option.is_warm]
    return (warm, "of equals it has the session's prompt cache") if 0 < len(warm) < len(left) else (left, why)


def _furthest_behind(left: list[Option], why: str) -> tuple[list[Option], str]:
    most = max(map(_behind, left))
    late = [option for option in left if _behind(option) >= most - SAME_PACE]
    if len(late) == len(left):
        return late, why
    if all(option.behind is None for option in late):
        return late, "no plan window of its is known, and those of the others are ahead of an even pace"
    if most < 0:
        return late, f"its plan window is the least ahead of an even pace, by {-most:.0%} of the window"
    if most < SAME_PACE:
        return late, "no plan window of its is ahead of an even pace, and those of the others are"
    return late, f"its plan window is furthest behind an even pace, by {most:.0%} of the window"


def _behind(option: Option) -> float:
    return 0.0 if option.behind is None else option.behind


def _why_not(option: Option, chosen: Option, now_s: float) -> str:
    return option.refused or _why_behind(option, chosen, now_s) or _why_dearer(option, chosen)


def _why_behind(option: Option, chosen: Option, now_s: float) -> str | None:
    """Say what puts an account behind the others, whatever it would take."""
    if math.isinf(option.wait_s):
        return "it can never serve the call"
    if option.closed_until_s is not None and option.closed_until_s > now_s:
        if math.isinf(option.closed_until_s):
            return f"one call tries it just now, after {option.closed_because}"
        return f"it is closed for another {seconds_text(option.closed_until_s - now_s)} after {option.closed_because}"
    if option.is_late and not chosen.is_late:
        return f"it could not serve the call before its deadline, but in {seconds_text(option.wait_s)}"
    if option.failed_before:
        return "it has failed for this call"
    if option.over_soft_ceiling and not chosen.over_soft_ceiling:
        return "it is over its soft ceiling"
    return None


def _why_dearer(option: Option, chosen: Option) -> str:
    if _seconds(option) > _seconds(chosen) + SAME_S:
        slower_s = _seconds(option) - _seconds(chosen)
        cold = " (its prompt cache is cold)" if chosen.is_warm and not option.is_warm else ""
        return f"it would take {seconds_text(slower_s)} more of waiting and of its limits{cold}"
    if option.price_micro_usd != chosen.price_micro_usd:
        return "it costs more" if option.price_micro_usd is not None else "no price is known for it"
    if chosen.is_warm and not option.is_warm:
        return "the session's prompt cache is not there"
    if _behind(option) < _behind(chosen) - SAME_PACE:
        if option.behind is None:
            return "no plan window of its is known that would be left unused"
        return (
            "its plan window is ahead of its line" if option.behind < 0 else "its plan window is less behind its line"
        )
    return f"it has less headroom, {option.headroom:.0%}" if option.headroom < chosen.headroom else "it came later"


State = Literal["closed", "open", "half_open"]


@dataclass(frozen=True, slots=True)
class Breaker:
    """A circuit: `failures` in a row, and if it is open until when; `pause_s` is the last pause, which doubles.

    `why` is the last failure in words. `is_out`: it opened because the account cannot serve before its owner acts.
    """

    failures: int = 0
    open_until_s: float | None = None
    pause_s: float = 0.0
    probing: bool = False
    why: str = ""
    is_out: bool = False

    def state(self, now_s: float) -> State:
        """Say whether calls go: all, none, or one to try."""
        if self.open_until_s is None:
            return "closed"
        return "open" if now_s < self.open_until_s or self.probing else "half_open"

    def closed_until_s(self, now_s: float) -> float | None:
        """Give until when no call goes, None if one may; infinite while one tries."""
        if self.state(now_s) != "open" or self.open_until_s is None:
            return None
        return math.inf if now_s >= self.open_until_s else self.open_until_s

    def tried(self, now_s: float) -> "Breaker":
        """Let a call go; in a half open circuit it is the one that tries."""
        return replace(self, probing=True) if self.state(now_s) == "half_open" else self

    def succeeded(self) -> "Breaker":
        """Close it."""
        return CLOSED

    def failed(
        self, now_s: float, retry_after_s: float | None = None, *, why: str = "", is_out: bool = False
    ) -> "Breaker":
        """Count a failure of the provider's side; a `retry_after_s` opens it for as long at once, `is_out` for long."""
        failures = self.failures + 1
        at_once = is_out or retry_after_s is not None
        if not at_once and failures < FAILURES_TO_OPEN and not self.probing:
            return replace(self, failures=failures, why=why)
        if self.open_until_s is not None and now_s < self.open_until_s and not self.probing and not is_out:
            return replace(self, failures=failures)  # one that was on its way when it opened
        pause_s = min(MOST_PAUSE_S, max(FIRST_PAUSE_S, 2 * self.pause_s))
        if is_out:
            pause_s = MOST_PAUSE_S
        elif retry_after_s is not None:
            pause_s = max(0.0, min(retry_after_s, MOST_PAUSE_S))
        return Breaker(failures, now_s + pause_s, pause_s, why=why, is_out=is_out)

    def gave_up(self) -> "Breaker":
        """The call that tried ended without a word of the provider's side: another may try."""
        return replace(self, probing=False)


CLOSED = Breaker()
