"""Reloading: a gateway that runs takes up what its configuration says now, on SIGHUP or over the control API.

One rule: all or nothing. The file is read and checked as a whole, and what needs a restart is refused; only then is all
of it put in force, in one turn of the loop, so that no call meets a half of it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import fields, replace

from headgate.adapters.config import Config, changes_in_words, needs_restart
from headgate.compose import House, announce, orders_of, read_config
from headgate.core.errors import CallerError, ConfigError, StoreError
from headgate.core.scheduling import Scheduling
from headgate.gateway.callers import KeyScopes

_HOLDS_NOTHING = "holds nothing while {} is not configured"

log = logging.getLogger("headgate.reload")


Agree = Callable[[list[str], Scheduling], Awaitable[None]]
"""Told what will change, a line each, and who goes next then; what it says no to does not."""


class Reloading:
    """Keeps what configuration is in force in a house."""

    def __init__(self, house: House, environ: Mapping[str, str] | None = None) -> None:
        """Begin with the one that the house was opened with; secrets come from `environ`, else the process's own."""
        self._house = house
        self._config = house.config
        self._environ = environ
        self._reloading = asyncio.Lock()
        self.take_keys: Callable[[Mapping[str, KeyScopes]], None] = lambda _keys: None
        """Told what the configuration says of keys."""

    async def reload(self, text: str | None = None, agree: Agree | None = None) -> list[str]:
        """Read the configuration again and put it in force; say what has changed, a line each.

        What was ordered of the scheduler since (`PUT /api/v1/scheduler`) stays, but for what the file says anew of it.
        `text` is what stood in the file, else it is read now. `agree` is told what will change once nothing can fail
        any more; it is put in force when that returns, and if it raises, nothing has changed.

        Raises:
            CallerError: it cannot be used, or needs a restart: then nothing has changed.
        """
        async with self._reloading:
            changed = await self._take_up(self._read(text), agree)
        log.info("reloaded: %s", "; ".join(changed) or "nothing has changed")
        return changed + await self._reservations_not_kept()

    def _read(self, text: str | None) -> Config:
        path = self._config.path
        if path is None:
            raise CallerError(
                "there is no configuration file to read again: this gateway was started from the environment alone; "
                "start it with --config"
            )
        config = read_config(path, self._environ, text=text)
        fixed = needs_restart(self._config, config)
        if fixed:
            raise ConfigError(f"{path}: {', '.join(fixed)} cannot change without a restart; nothing was changed")
        return config

    async def _take_up(self, config: Config, agree: Agree | None) -> list[str]:
        before = replace(self._config, scheduling=self._house.manager.scheduling)
        after = replace(config, scheduling=_taken_up(before.scheduling, self._config.scheduling, config.scheduling))
        changed = changes_in_words(before, after)
        if agree is None:
            await self._house.manager.configure(orders_of(after))
        else:
            await self._house.manager.configure(orders_of(after), lambda: agree(changed, after.scheduling))
        self._house.prices.configure(config.prices, config.windows)
        self.take_keys(said_of_keys(config))
        self._config = config
        await announce(self._house, config)
        return changed

    async def _reservations_not_kept(self) -> list[str]:
        """Name the reservations that hold nothing now, because their limit is gone, or less than they were to."""
        try:
            reservations = await self._house.manager.reservations()
        except StoreError as error:
            log.warning("whether reservations can be kept is not known: %s", error)
            return []
        return [
            f"reservation {each.plan.id} ({each.plan.scope}): "
            + (f"cannot be kept in full: {each.short}" if each.is_kept else _HOLDS_NOTHING.format(each.plan.limit))
            for each in reservations
            if not each.is_kept or each.short is not None
        ]


def _taken_up(in_force: Scheduling, read_before: Scheduling, read_now: Scheduling) -> Scheduling:
    """Give what is in force of the scheduler with what the file says otherwise than when it was last read."""
    named = ((each.name, getattr(read_now, each.name)) for each in fields(read_now))
    return replace(in_force, **{name: value for name, value in named if value != getattr(read_before, name)})


def said_of_keys(config: Config) -> dict[str, KeyScopes]:
    """Give what the configuration says of keys, by their names."""
    return {
        key.name: KeyScopes(
            team=key.team,
            tags=dict(key.tags),
            priority=key.priority,
            interactive=key.interactive,
            models=key.models,
            endpoints=key.endpoints,
            while_waiting=key.while_waiting,
            coalesce=key.coalesce,
            batch_embeddings=key.batch_embeddings,
        )
        for key in config.keys
    }
