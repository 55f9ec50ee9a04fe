"""What is asked of the control API: by whom, with which words, and what the asker may see.

One rule: a key's bearer sees its own and nobody else's: what was called with the key and with those that were made
under it. What is answered is the paths' own affair.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from headgate.adapters.providers.http import HostStats
from headgate.core.errors import CallerError
from headgate.core.ledger import GroupBy
from headgate.core.scopes import Scopes, is_own
from headgate.gateway.callers import Caller, KeyScopes
from headgate.gateway.exchange import HttpExchange
from headgate.runtime.feed import Event
from headgate.runtime.manager import Manager
from headgate.runtime.monitor import WaitView


class NothingThereError(CallerError):
    """What the path names is not there, or not the caller's."""


Reload = Callable[[], Awaitable[Sequence[str]]]
"""Puts the configuration in force as it is now, and gives what has changed, a line each."""

Hosts = Callable[[], Mapping[str, HostStats]]
"""How the connections to each host are used."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One question or order: `words` has its parameters, `named` the words of its path.

    `keys` is what the configuration says of keys; `reload` reads it again, None where there is nothing to read. `hosts`
    tells how connections are used.
    """

    exchange: HttpExchange
    manager: Manager
    caller: Caller
    view: "View"
    words: Mapping[str, str] = field(default_factory=dict)
    named: Mapping[str, str] = field(default_factory=dict)
    keys: Mapping[str, KeyScopes] = field(default_factory=dict)
    reload: Reload | None = None
    hosts: Hosts = dict


@dataclass(frozen=True, slots=True)
class View:
    """What a caller may see."""

    caller: Caller
    own: Scopes

    @property
    def only(self) -> tuple[tuple[GroupBy, str], ...]:
        """Give what a call's scopes must say, to be the caller's: those of a child, or of a key with its children."""
        if self.caller.key is None:
            return ()
        said: tuple[tuple[GroupBy, str | None], ...] = (
            ("key", self.own.key),
            ("run", self.own.run),
            ("agent", self.own.agent),
        )
        return tuple((kind, value) for kind, value in said if value is not None)

    def has_call(self, scopes: Scopes | WaitView) -> bool:
        """Whether a call is the caller's."""
        return all(getattr(scopes, kind) == value for kind, value in self.only)

    def has_event(self, event: Event) -> bool:
        """Whether an event is of the caller's calls or limits, or of its own slowness."""
        if self.caller.key is None or event.kind == "missed":
            return True
        if event.kind == "limit":
            return self.has_limit(event.facts["scope"])
        return self.has_call(event.scopes)

    def has_limit(self, scope: str) -> bool:
        """Whether the limits of a scope are the caller's to see."""
        if self.caller.key is None:
            return True
        # A child's siblings have their scopes under the same key: those are the parent's to see, not the child's.
        return is_own(scope, self.own) if self.caller.key.parent is None else scope in self.own.path()
