"""Wishes: attempts before they have an account, and what they meet and ask at each.

One rule: a wish is reckoned once, when its call comes; only the limits and the prompt cache differ from account to
account.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from headgate.core.estimates import Estimate, Estimator
from headgate.core.ledger import Attempt
from headgate.core.limits import Limit
from headgate.core.scopes import Scopes, fit
from headgate.ports import Clock, Prices
from headgate.runtime.account_pool import AccountPool, Asked, PromptCache
from headgate.runtime.asking import (
    Question,
    demand_of,
    estimate_of,
    held_micro_usd,
    likely_of,
    standing_of,
    uncached_of,
)
from headgate.runtime.grants import Call
from headgate.runtime.lanes import ASK_AGAIN_S, Ticket
from headgate.runtime.routes import PooledRoute


class Wish(NamedTuple):
    """One attempt: whose it is, what it will probably use as reckoned at `now_s`, and until when it would wait.

    Its call came at `came_s`, as the `order`th (None: it comes now); the attempt waits from `queued_s` on.
    """

    call: Call
    attempt: str
    scopes: Scopes
    estimate: Estimate
    now_s: float
    queued_s: float
    came_s: float
    order: int | None
    deadline_s: float
    is_drawn: bool


@dataclass(frozen=True, slots=True)
class Wishes:
    """Makes wishes, and of these tickets and routes, for one process."""

    pool: AccountPool
    estimator: Estimator
    prices: Prices
    clock: Clock
    limits_for: Callable[[Scopes, str], tuple[Limit, ...]]

    def wish(
        self, call: Call, attempt: str, queued_s: float, came: tuple[float, int | None], *, is_read_here: bool
    ) -> Wish:
        """Reckon what an attempt will use."""
        now_s = self.clock.now_s()
        estimate = estimate_of(call, self.estimator, now_s)
        is_drawn = is_read_here and call.is_streamed and call.dialect == "anthropic"
        deadline_s = came[0] + call.max_wait_s
        if call.patience_s is not None:
            deadline_s = min(deadline_s, queued_s + call.patience_s)
        return Wish(call, attempt, fit(call.scopes), estimate, now_s, queued_s, *came, deadline_s, is_drawn)

    def ticket(self, wish: Wish, account: str, route: PooledRoute | None = None, *, is_warm: bool = True) -> Ticket:
        """Say what an attempt meets and asks at an account, where its prompt cache is or is not.

        Raises:
            UnboundedError: it meets a budget of money there, and nothing bounds the call.
        """
        call, now_s = wish.call, self.clock.now_s()
        scopes = wish.scopes if wish.scopes.account == account else wish.scopes.at(account)
        limits = self.limits_for(scopes, call.model)
        counting = self.pool.counting(account, call.dialect)
        ask = Question(call, self.estimator, self.prices, call.standing, is_warm, wish.is_drawn, counting).ask
        is_fresh = now_s < wish.now_s + ASK_AGAIN_S
        asked, standing = ask(now_s, limits, wish.estimate if is_fresh else None)
        return Ticket(
            wish.attempt,
            limits,
            asked,
            scopes,
            call.model,
            wish.came_s,
            wish.deadline_s,
            standing,
            ask,
            wish.order,
            route,
        )

    def _cache(self, wish: Wish) -> PromptCache | None:
        estimate = wish.estimate
        if not estimate.written_tokens:
            return None
        likely = likely_of(wish.call, estimate, self.prices, wish.now_s)
        uncached = uncached_of(wish.call, estimate, self.prices, wish.now_s)
        return PromptCache(likely, uncached, estimate.written_until_s)

    def route(self, wish: Wish, avoid: frozenset[str]) -> PooledRoute:
        """Give the ways of an attempt that several accounts could serve, of which it has failed at some."""
        call, now_s = wish.call, wish.now_s
        asked = Asked(
            wish.attempt,
            call.dialect,
            call.model,
            wish.scopes,
            demand_of(call, wish.estimate, self.prices, now_s, None),
            standing_of(call, call.standing, wish.estimate, self.prices, now_s),
            wish.queued_s,
            wish.deadline_s,
            avoid,
            cache=self._cache(wish),
        )
        return PooledRoute(self.pool, asked, self.clock, partial(self.ticket, wish))


def row_asking(row: Attempt, ticket: Ticket) -> Attempt:
    """Give a row with what its attempt asks, and where; what it is thought to cost, until it is known."""
    held, expected = held_micro_usd(ticket.limits, ticket.asked), ticket.asked.expected.micro_usd
    return replace(row, scopes=ticket.scopes, held_micro_usd=held, cost_micro_usd=expected)
