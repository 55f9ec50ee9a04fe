"""Streaming: what an answer tells while it runs is charged then, not at its end.

One rule: it only runs ahead of the settlement at the end, which says all that was used and is charged the rest; so what
it leaves out, or a trouble of the store swallows, costs nothing but a while. Reading answers is the provider's affair.
"""

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Protocol

from headgate.core.amounts import NOTHING, Amounts, Demand, Dimension
from headgate.core.errors import StoreError
from headgate.core.levels import Level
from headgate.core.limits import Limit, Rate
from headgate.core.quota import Reservation, draw
from headgate.core.usage import CHARGES, Counting, Usage
from headgate.runtime.admission import Admission

DRAWS = 4
"""A hold on output is drawn in as many parts, the last of them by the settlement (decision 0015 has the figures)."""

LEAST_DRAWN_TOKENS = 64
"""Smaller parts are not worth a transaction: an answer of 64 tokens takes a second."""

BEYOND = 1.25
"""What goes by beyond the hold is charged each time it is so much more: 64,000 tokens take 25 transactions at most."""

_INPUT: tuple[Dimension, ...] = ("input_tokens",)


class Telling(Protocol):
    """As much of an answer as is charged early."""

    @property
    def usage(self) -> Usage | None:
        """What was told so far."""
        ...

    @property
    def output_seen_tokens(self) -> int:
        """At least so much output went by."""
        ...


class EarlyCharges:
    """What one attempt is charged before its end: its input when it is told, its output in parts as it goes by."""

    def __init__(
        self, admission: Admission, attempt: str, limits: tuple[Limit, ...], asked: Demand, counting: Counting
    ) -> None:
        """Charge nothing yet."""
        self._admission = admission
        self._attempt = attempt
        self._limits = limits
        self._counting = counting
        self._input_due = any(limit.dimension == "input_tokens" for limit in limits)
        self._asked = asked
        self._held_tokens, self._part_tokens = drawn_tokens(limits, asked) if counting == "anthropic" else (None, 0)
        self._next_tokens: float = self._part_tokens
        self._under_way: set[asyncio.Task[None]] = set()

    def look(self, answer: Telling) -> None:
        """Charge what an answer has told by now; called for each piece of it, so mostly there is nothing to do."""
        if self._input_due and (told := answer.usage) is not None:  # its input is told first, and right from then on
            self._input_due = False
            if not told.reported:  # else all of it is told at once, and the settlement of all comes next
                self._begin(self._settle_input(CHARGES[self._counting](told, None)))
        if self._held_tokens is not None and answer.output_seen_tokens >= self._next_tokens:
            seen = answer.output_seen_tokens
            self._next_tokens = max(seen + self._part_tokens, 0 if seen < self._held_tokens else BEYOND * seen)
            self._begin(self._draw(seen))

    async def ended(self) -> None:
        """Return when nothing is on its way any more."""
        while self._under_way:
            await asyncio.wait(self._under_way)

    def _begin(self, charge: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(charge, name=f"early {self._attempt}")
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _settle_input(self, actual: Amounts) -> None:
        with suppress(StoreError):  # then the settlement at the end has all of it
            await self._admission.settle(self._attempt, self._limits, actual, _INPUT)

    async def _draw(self, output_tokens: int) -> None:
        so_far = NOTHING._replace(output_tokens=output_tokens)
        with suppress(StoreError):
            await self._admission.change(self._attempt, self._limits, partial(drawn, so_far, self._asked))


def drawn(
    so_far: Amounts,
    asked: Demand,
    limits: Sequence[Limit],
    levels: Mapping[str, Level],
    reserved: Reservation,
    now_s: float,
) -> tuple[dict[str, Level], Reservation | None]:
    """Charge what a stream has used of its rates so far: it drains from now on."""
    return draw(limits, levels, reserved, so_far, now_s, asked=asked)


def drawn_tokens(limits: tuple[Limit, ...], asked: Demand) -> tuple[int | None, int]:
    """Give the output that is expected of a stream whose rates are charged as it goes by, and in what parts it is.

    None of it where no rate holds output, which Anthropic counts as it is produced (wire.md section 2).
    """
    rates = [limit for limit in limits if isinstance(limit, Rate) and limit.is_drawn]
    if not rates:
        return None, 0
    expected, pace = asked.expected.output_tokens, asked.output_tokens_per_s
    held = min(min(limit.most_held, expected) for limit in rates)
    part = max(LEAST_DRAWN_TOKENS, held // DRAWS)
    parts_ahead = [limit.part_of_stream(pace) for limit in rates if pace and limit.ahead_of_stream(pace) < expected]
    return (expected, min(part, *parts_ahead)) if parts_ahead else (held, part)
