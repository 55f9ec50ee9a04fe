"""The accounts of one owner as one pool: which serves a call, by what this process knows of each at that moment.

One rule: a choice costs a look into the store once a second at the most (`sight`), and none where one account serves
the model; the admission itself is exact whatever was chosen. How to choose is the core's (`core.pool`).
"""

import math
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from headgate.core.accounts import Account, accounts_for
from headgate.core.amounts import NOTHING, Amounts, Demand
from headgate.core.pool import SAME_S, Choice, Option, better, choose
from headgate.core.retries import Failure
from headgate.core.scheduling import Standing
from headgate.core.scopes import Scopes
from headgate.core.usage import Counting, Dialect
from headgate.ports import Clock
from headgate.runtime.health import Health
from headgate.runtime.sight import Prospect, Sight

MOST_SESSIONS = 50_000
MOST_MODELS = 1_000
"""Models of which it is remembered who serves them."""

MOST_CHOICES = 200
"""Choices that are remembered, to be asked why."""

SOONEST_AGAIN_S = 0.001
"""A choice is not asked again sooner than this unless something changes."""


@dataclass(frozen=True, slots=True)
class PromptCache:
    """What a conversation's prompt cache is worth: what its call likely uses there and elsewhere, until it dies."""

    likely: Amounts
    uncached: Amounts
    until_s: float

    @property
    def worth(self) -> Amounts:
        """What a call uses more where it is not."""
        pairs = zip(self.uncached, self.likely, strict=True)
        return Amounts(*(max(0, (elsewhere or 0) - (here or 0)) for elsewhere, here in pairs))


@dataclass(frozen=True, slots=True)
class Asked:
    """A call that looks for an account: its `demand` holds where its prompt cache is, if it has one.

    It has failed at the accounts of `avoid`.
    """

    call: str
    dialect: Dialect
    model: str
    scopes: Scopes
    demand: Demand
    standing: Standing
    queued_s: float
    deadline_s: float
    avoid: frozenset[str] = frozenset()
    cache: PromptCache | None = None

    def has_cache(self, now_s: float) -> bool:
        """Whether it has a prompt cache somewhere."""
        return self.cache is not None and now_s < self.cache.until_s

    def demand_at(self, now_s: float, *, is_warm: bool) -> tuple[Demand, int | None, Amounts]:
        """Give what it asks of an account that has its prompt cache or has not, its price, and what it loses there."""
        if self.cache is None:
            return self.demand, self.demand.expected.micro_usd, NOTHING
        if is_warm and now_s < self.cache.until_s:
            return self.demand, self.cache.likely.micro_usd, NOTHING
        lost = NOTHING if is_warm else self.cache.worth
        return self.demand._replace(expected=self.cache.uncached), self.cache.uncached.micro_usd, lost


@dataclass(frozen=True, slots=True)
class Chosen:
    """A choice that was made, for whose call; `left` is the account that it waited for before."""

    at_s: float
    call: str
    model: str
    scopes: Scopes
    choice: Choice
    left: str | None = None


@dataclass(frozen=True, slots=True)
class Stay:
    """Nothing is better now; `again_s` and `leaves_room` as in `lanes.Elsewhere`."""

    again_s: float
    leaves_room: bool


class AccountPool:
    """Chooses, remembers who has whose prompt cache, and why it chose."""

    def __init__(self, accounts: Sequence[Account], sight: Sight, health: Health, clock: Clock) -> None:
        """Choose among `accounts`."""
        self._accounts = tuple(accounts)
        self._counting = {each.name: each.counting for each in self._accounts if each.counting is not None}
        self._able: dict[tuple[Dialect, str], list[Account]] = {}
        self._sight = sight
        self._clock = clock
        self._homes: OrderedDict[tuple[str, str | None, str], str] = OrderedDict()
        self.health = health
        self.choices: deque[Chosen] = deque(maxlen=MOST_CHOICES)

    def only(self, dialect: Dialect, model: str) -> str | None:
        """Give the account that serves a model, if there is but one.

        Raises:
            UnknownModelError: no account serves the model.
        """
        able = self._able.get((dialect, model))  # every call asks
        if able is None:
            if len(self._able) >= MOST_MODELS:
                self._able.clear()
            able = self._able[dialect, model] = accounts_for(self._accounts, dialect, model)
        return able[0].name if len(able) == 1 else None

    def counting(self, account: str, dialect: Dialect) -> Counting:
        """Give how an account's provider counts calls: where nobody says, as the dialect's own vendor does."""
        return self._counting.get(account, dialect)

    def able(self, dialect: Dialect, model: str) -> list[Account]:
        """Give every account that serves a model."""
        return accounts_for(self._accounts, dialect, model)

    def speaking(self, dialect: Dialect) -> list[Account]:
        """Give the accounts that speak a dialect, in their order."""
        return [each for each in self._accounts if each.dialect == dialect]

    def first_that_serves(self, dialect: Dialect, model: str | None) -> Account:
        """Give the account for a question that spends nothing, about a model or (None) none.

        Raises:
            UnknownModelError: no account speaks the dialect, or serves the model.
        """
        able = self.speaking(dialect) if model is None else []
        if model is not None or not able:
            able = self.able(dialect, model or "*")
        return next((each for each in able if self.closed_s(each.name, model or "") == 0.0), able[0])

    async def choose(self, asked: Asked) -> Choice:
        """Choose for a call.

        Raises:
            UnknownModelError: no account serves the model.
            StoreError: the store cannot be read.
        """
        able = self.able(asked.dialect, asked.model)
        await self._sight.look(able, asked.scopes, asked.model)
        now_s = self._clock.now_s()
        choice = choose(self._options(able, asked, now_s), now_s)
        if choice is None:
            choice = Choice(able[0].name, "none can ever serve it; the first says why")
        self._took(asked, choice, None)
        return choice

    async def reconsider(self, asked: Asked, here: str, known_s: Mapping[str, float], *, grows: bool) -> Choice | Stay:
        """Say where a call should go that waits at an account: for how long it waits `here`, and elsewhere, is known.

        With `grows` nobody knows for how long here, so what it is taken to wait grows while it does.

        Raises:
            StoreError: the store cannot be read.
        """
        able = self.able(asked.dialect, asked.model)
        await self._sight.look(able, asked.scopes, asked.model)
        now_s = self._clock.now_s()
        opens_s: dict[str, float] = {}
        options = [
            option
            if option.account not in known_s
            else _waiting(option, known_s[option.account], asked.deadline_s - now_s)
            for option in self._options(able, asked, now_s, opens_s)
        ]
        found = better(options, here, now_s)
        if found is not None:
            return found
        # What grows is taken to last as long again: half way to its deadline the call is too late here.
        late_s = (asked.queued_s + asked.deadline_s) / 2 if grows else math.inf
        return _stay(options, here, opens_s, now_s, late_s)

    def moved(self, asked: Asked, choice: Choice, left: str) -> None:
        """Remember that a call that waited went elsewhere."""
        self._took(asked, choice, left)

    def would_leave(self, asked: Asked) -> bool:
        """Whether a call would go to another account than those that it failed at."""
        now_s = self._clock.now_s()
        choice = choose(self._options(self.able(asked.dialect, asked.model), asked, now_s), now_s)
        return choice is not None and choice.account not in asked.avoid

    def is_warm(self, asked: Asked, account: str) -> bool:
        """Whether a call's prompt cache, if it has one, is at an account."""
        return not asked.has_cache(self._clock.now_s()) or self._home(asked) in (None, account)

    def succeeded(self, asked_model: str, scopes: Scopes) -> None:
        """Remember that an account answered: its circuit closes, and the conversation's prompt cache is there."""
        account = scopes.account or ""
        self.health.succeeded(account, asked_model)
        if scopes.session is not None:
            home = (scopes.session, scopes.agent, asked_model)
            self._homes[home] = account
            self._homes.move_to_end(home)
            if len(self._homes) > MOST_SESSIONS:
                self._homes.popitem(last=False)

    def failed(self, account: str, model: str, failure: Failure) -> None:
        """Count a failure; only the provider's side makes an account ill."""
        self.health.failed(account, model, failure)

    def gave_up(self, account: str, model: str) -> None:
        """Remember that a call ended without a word of the provider's side."""
        self.health.gave_up(account, model)

    def closed_s(self, account: str, model: str) -> float:
        """Give for how long an account is left alone for a model, after failures or because its provider said so."""
        until_s = self.health.circuit(account, model).open_until_s
        return 0.0 if until_s is None else max(0.0, until_s - self._clock.now_s())

    def _took(self, asked: Asked, choice: Choice, left: str | None) -> None:
        scopes = asked.scopes._replace(account=choice.account)
        self.choices.append(Chosen(self._clock.now_s(), asked.call, asked.model, scopes, choice, left))
        self.health.tried(choice.account, asked.model)

    def _home(self, asked: Asked) -> str | None:
        scopes = asked.scopes
        return None if scopes.session is None else self._homes.get((scopes.session, scopes.agent, asked.model))

    def _options(
        self,
        able: Sequence[Account],
        asked: Asked,
        now_s: float,
        opens_s: dict[str, float] | None = None,
    ) -> list[Option]:
        last = self._home(asked)  # of equals it goes on there, also before anything is known of its cache
        home = last if asked.has_cache(now_s) else None
        so_far_s = max(0.0, now_s - asked.queued_s)
        options = []
        for account in able:
            demand, price, lost = asked.demand_at(now_s, is_warm=home in (None, account.name))
            prospect = self._sight.prospect(account, asked.scopes, asked.model, demand, lost, now_s, so_far_s)
            if opens_s is not None:
                opens_s[account.name] = prospect.opens_s
            options.append(self._option(account, asked, prospect, price, now_s, is_warm=last == account.name))
        return options

    def _option(
        self,
        account: Account,
        asked: Asked,
        prospect: Prospect,
        price_micro_usd: int | None,
        now_s: float,
        *,
        is_warm: bool,
    ) -> Option:
        circuit = self.health.circuit(account.name, asked.model)
        closed_until_s = circuit.closed_until_s(now_s)
        behind = [share for plan in prospect.plans if (share := plan.behind(now_s)) is not None]
        return Option(
            account.name,
            wait_s=prospect.wait_s,
            cost_s=prospect.cost_s,
            price_micro_usd=price_micro_usd,
            behind=min(behind, default=None),
            headroom=prospect.headroom,
            over_soft_ceiling=any(plan.used > account.soft_ceiling for plan in prospect.plans),
            is_warm=is_warm,
            closed_until_s=closed_until_s,
            refused=prospect.refused,
            failed_before=account.name in asked.avoid,
            closed_because=circuit.why or "failures",
            is_out=circuit.is_out and closed_until_s is not None,
            is_free=prospect.is_free,
            is_late=now_s + prospect.wait_s > asked.deadline_s,
        )


def _waiting(option: Option, wait_s: float, left_s: float) -> Option:
    """Give an option of which it is known how long the call would wait."""
    return replace(option, wait_s=wait_s, is_free=False, is_late=wait_s > left_s, refused=None)


def _stay(options: Sequence[Option], here: str, opens_s: dict[str, float], now_s: float, late_s: float) -> Stay:
    """Say until when staying is settled, if nothing changes: until another opens, or has become worth its price.

    Nothing grows dearer where `late_s`, when it becomes too late here, is infinite.
    """
    mine = next(option for option in options if option.account == here)
    again_s = math.inf
    leaves_room = False
    for option in options:
        if option is mine or option.refused is not None or option.is_late:
            continue
        if option.closed_until_s is not None and option.closed_until_s > now_s:
            again_s = min(again_s, option.closed_until_s)
        elif opens_s[option.account] > now_s:
            again_s = min(again_s, opens_s[option.account])
        elif not math.isinf(late_s):
            if late_s >= now_s:
                again_s = min(again_s, late_s + SOONEST_AGAIN_S)
            dearer_s = option.wait_s + option.cost_s + SAME_S - mine.wait_s - mine.cost_s
            again_s = min(again_s, now_s + dearer_s + SOONEST_AGAIN_S) if dearer_s > 0 else again_s
        leaves_room = leaves_room or option.is_free
    return Stay(max(again_s, now_s + SOONEST_AGAIN_S), leaves_room)
