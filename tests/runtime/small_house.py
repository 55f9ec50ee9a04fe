"""A manager over memory stores, a scripted provider and a clock of virtual time, and limits to give it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

from headgate.adapters.memory import MemoryKeyStore, MemoryLedgerStore, MemoryLevelStore
from headgate.core.accounts import Account
from headgate.core.limits import Gauge, Rate, Window
from headgate.core.scopes import LimitRule
from headgate.core.spans import Calendar, Lifetime
from headgate.runtime.manager import Manager, Parts
from headgate.testing.scripted import FlatPrices, ScriptedProvider
from headgate.testing.virtual_time import VirtualClock


@dataclass
class House:
    manager: Manager
    provider: ScriptedProvider
    levels: Any
    ledger: Any
    clock: VirtualClock


def rate(dimension: str, amount: int, burst: int | None = None, scope: str = "account:main") -> LimitRule:
    limit = Rate(
        "", scope, dimension, amount, 60, burst or amount, charged_at_start=dimension in {"requests", "tokens"}
    )
    return LimitRule(scope, limit)


def budget(micro_usd: int, scope: str = "run:*", *, lifetime: bool = True) -> LimitRule:
    return LimitRule(scope, Window("", scope, "micro_usd", micro_usd, Lifetime() if lifetime else Calendar("day")))


def slots(amount: int, scope: str = "account:main") -> LimitRule:
    return LimitRule(scope, Gauge("", scope, "slots", amount))


@asynccontextmanager
async def open_small_house(
    *rules: LimitRule, stores: Any = None, owner: str = "here", alive: Any = None, **parts: Any
) -> AsyncIterator[House]:
    provider = parts.pop("provider", None) or ScriptedProvider()
    levels, ledger = stores or (MemoryLevelStore(), MemoryLedgerStore())
    clock = VirtualClock(epoch_s=parts.pop("epoch_s", 1_750_000_000.0))
    manager = Manager(
        Parts(
            levels=levels,
            ledger=parts.pop("ledger", ledger),
            keys=MemoryKeyStore(),
            prices=parts.pop("prices", FlatPrices()),
            clock=clock,
            owner=owner,
            owner_is_alive=alive or (lambda _owner: True),
            accounts=parts.pop("accounts", None)
            or [Account("main", "anthropic", ("claude-*",), parts.pop("overage", False))],
            providers=parts.pop("providers", None) or {"main": provider},
            rules=rules,
            rules_of_key=lambda _key: (),
            chooser=Random(7),
            **parts,
        )
    )
    await manager.start()
    try:
        yield House(manager, provider, levels, ledger, clock)
    finally:
        await manager.close()


def level_of(limits: list[Any], dimension: str) -> Any:
    return next(view for view in limits if view.dimension == dimension)
