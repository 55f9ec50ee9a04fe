"""Which scopes there are: a question about one that does not exist must not be answered as if it had no limit.

One rule: accounts and keys are all known by name; of runs, agents, sessions, teams and tags only what came so far is.
"""

import sys
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from headgate.adapters.config import Config
from headgate.cli.reloading import said_of_keys
from headgate.core.errors import CallerError
from headgate.gateway.outlook import scopes_of_keys
from headgate.runtime.manager import Manager
from headgate.runtime.monitor import LimitView

__all__ = ["check_scopes", "say_unknown", "scopes_there_are"]

_MOST_SCOPES_NAMED = 10
_ALL_KNOWN = ("account", "key")
"""Kinds of which every scope is known by name; the others come with the first call that names them."""


async def say_unknown(scope: str, manager: Manager, config: Config, views: Sequence[LimitView]) -> None:
    """Refuse an account that is not configured, and say on stderr that nothing is known of a key.

    A key may be one that is made later, or one that fleets made and that ended.

    Raises:
        CallerError: no such account is configured, and none left a limit.
    """
    words = [word for word in scope.split(",") if word.startswith(tuple(f"{kind}:" for kind in _ALL_KNOWN))]
    if not words:
        return
    there_are = await scopes_there_are(manager, config, views)
    check_scopes([word for word in words if word.startswith("account:")], there_are)
    for word in words:
        if word.startswith("key:") and not any(fnmatchcase(each, word) for each in there_are):
            print(f"headgate: --scope {word[:100]}: nothing is known of such a key", file=sys.stderr)  # noqa: T201 - beside the answer


async def scopes_there_are(manager: Manager, config: Config, views: Sequence[LimitView]) -> list[str]:
    """Give every scope that is configured, has a key or a limit in use; patterns too where not all names are known."""
    keys = await scopes_of_keys(manager, said_of_keys(config))
    found = {scope for view in views for scope in (view.scope, view.scope.partition("|")[0])}
    found |= {f"account:{account.name}" for account in manager.accounts}
    found |= {scope for scopes in keys for scope in scopes.path()}
    found |= {rule.scope for rule in config.limits}
    return sorted(each for each in found if "*" not in each or not each.startswith(_ALL_KNOWN))


def check_scopes(words: Iterable[str], there_are: Sequence[str]) -> None:
    """Raise CallerError for a scope that fits nothing: a check of it would always pass, whatever is spent."""
    for word in words:
        if any(fnmatchcase(each, word) for each in there_are):
            continue
        # Of a claimed scope that is still to come, whose it is must be there, where all of that kind are known.
        named, *owners = word.split("|")
        asked = [named, *(owner for owner in owners if owner.startswith(_ALL_KNOWN))]
        missing = [part for part in asked if not any(_fit(part, each) for each in there_are)]
        if not missing:
            continue
        kind = missing[0].partition(":")[0]
        known = [each for each in there_are if each.startswith(f"{kind}:") and "|" not in each]
        more = f" and {len(known) - _MOST_SCOPES_NAMED} more" if len(known) > _MOST_SCOPES_NAMED else ""
        there = f"there are: {', '.join(known[:_MOST_SCOPES_NAMED])}{more}" if known else f"no {kind} has one"
        raise CallerError(f"--scope {word[:100]}: nothing is configured or in use for it; {there}")


def _fit(one: str, other: str) -> bool:
    """Whether of a scope and a pattern, whichever is which, the one fits the other."""
    return fnmatchcase(one, other) or fnmatchcase(other, one)
