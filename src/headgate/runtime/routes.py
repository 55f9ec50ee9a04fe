"""Routes: which of several accounts an attempt goes to, asked when it comes and again while it waits.

One rule: a route decides nothing: the pool chooses (`account_pool`), the lanes try (`moves`). It knows what the attempt
would ask at each account, and where it is bound for now.
"""

from dataclasses import replace
from typing import Protocol

from headgate.core.errors import UnboundedError
from headgate.core.pool import Choice, expected_wait_s
from headgate.core.quota import Wait
from headgate.core.scopes import Scopes
from headgate.ports import Clock
from headgate.runtime.account_pool import AccountPool, Asked, Stay
from headgate.runtime.lanes import Elsewhere, Ticket
from headgate.runtime.moves import STAYS


class TicketAt(Protocol):
    """Gives an attempt's ticket at an account: its limits there, and what it asks with its prompt cache or without.

    Raises UnboundedError where a budget of money is met there and nothing bounds the call.
    """

    def __call__(self, account: str, route: "PooledRoute", *, is_warm: bool) -> Ticket:
        """Give it."""
        ...


class PooledRoute:
    """The ways of one attempt through a pool of accounts; implements `lanes.Route`."""

    def __init__(self, pool: AccountPool, asked: Asked, clock: Clock, ticket_at: TicketAt) -> None:
        """Begin nowhere."""
        self._pool = pool
        self._asked = asked
        self._clock = clock
        self._ticket_at = ticket_at
        self._found: Choice | None = None
        self.choice: Choice | None = None
        self.left_cache = False
        """Whether its prompt cache is at another account than the chosen one."""
        self.scopes = frozenset(f"account:{each.name}" for each in pool.able(asked.dialect, asked.model))

    async def begin(self) -> Ticket:
        """Choose an account; gives the ticket there.

        Raises:
            UnboundedError: it meets a budget of money there, and nothing bounds the call.
            StoreError: the store cannot be read.
        """
        if self.choice is not None:
            self.gave_up()
        self.choice = await self._pool.choose(self._asked)
        self.left_cache = not self._pool.is_warm(self._asked, self.choice.account)
        return self._at(self.choice)

    async def elsewhere(
        self, here: Ticket, wait: Wait, ahead_s: float, told: tuple[str | None, Wait] | None
    ) -> Elsewhere:
        """Say whether the attempt should go elsewhere than where it waits."""
        now_s = self._clock.now_s()
        so_far_s = max(0.0, now_s - self._asked.queued_s)
        known_s = {here.scopes.account or "": _expected_s(wait, now_s, so_far_s) + ahead_s}
        if told is not None:
            known_s[told[0] or ""] = _expected_s(told[1], now_s, so_far_s)
        grows = max(now_s, wait.earliest_s) < wait.until_s and now_s + so_far_s < wait.until_s
        found = await self._pool.reconsider(self._asked, here.scopes.account or "", known_s, grows=grows)
        if isinstance(found, Stay):
            return Elsewhere(None, found.again_s, found.leaves_room)
        try:
            there = self._at(found)
        except UnboundedError:  # it is admitted where it waits, and could not be there
            return STAYS
        self._found = found
        return Elsewhere(there, now_s)

    def took(self, there: Ticket) -> None:
        """Hear that the attempt went where it was told last."""
        assert self.choice is not None
        assert self._found is not None
        assert self._found.account == there.scopes.account
        left, self.choice = self.choice.account, self._found
        self.left_cache = not self._pool.is_warm(self._asked, self.choice.account)
        self._pool.gave_up(left, self._asked.model)
        self._pool.moved(self._asked, self._found, left)

    def gave_up(self) -> None:
        """Hear that the attempt will not be sent: if it was to try an ill account, another may."""
        if self.choice is not None:
            self._pool.gave_up(self.choice.account, self._asked.model)

    def leads_on(self, failed_at: str) -> bool:
        """Whether the call, which has failed at this account too, would go to another now."""
        avoid = self._asked.avoid | {failed_at}
        return self._pool.would_leave(replace(self._asked, queued_s=self._clock.now_s(), avoid=avoid))

    @property
    def bound_for(self) -> Scopes:
        """Whose the attempt is, with the account that it is bound for."""
        account = self.choice.account if self.choice is not None else None
        return self._asked.scopes._replace(account=account)

    def _at(self, choice: Choice) -> Ticket:
        return self._ticket_at(choice.account, self, is_warm=self._pool.is_warm(self._asked, choice.account))


def _expected_s(wait: Wait, now_s: float, so_far_s: float) -> float:
    return expected_wait_s(max(0.0, wait.earliest_s - now_s), max(0.0, wait.until_s - now_s), so_far_s)
