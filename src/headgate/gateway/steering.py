"""Steering: the scheduler's policies over the control API, read and changed while calls wait.

One rule: a change is all or nothing, and only an administrator makes one; it holds until this process ends or the
configuration is read again and says otherwise than before. The log tells of it.
"""

import logging
from collections.abc import Mapping
from typing import Any

import msgspec

from headgate.adapters.config.document import Document
from headgate.adapters.config.scheduling import read_scheduling
from headgate.adapters.config.tables import Problems
from headgate.core.errors import CallerError
from headgate.core.scheduling import POLICIES, Scheduling
from headgate.gateway.callers import Caller
from headgate.runtime.keys import NotAllowedError
from headgate.runtime.manager import Manager

log = logging.getLogger("headgate.gateway")

SCHEDULER_PATH = "/api/v1/scheduler"
MOST_CHANGE_BYTES = 64 * 1024

BOUNDS = {name: getattr(make(), "bound", "as the policy that it chooses") for name, make in POLICIES.items()}
"""Each policy with the bound on waiting that it keeps."""

_SCHEDULER_WORDS = ("policy", "share_by", "weights", "warm_up")
_WORDS = (*_SCHEDULER_WORDS, "lanes")


def show_scheduling(manager: Manager) -> dict[str, Any]:
    """Give the configuration in force, and the policies that there are with the bound on waiting each keeps."""
    return {**_in_words(manager.scheduling), "policies": dict(BOUNDS)}


def change_scheduling(manager: Manager, caller: Caller, body: bytes) -> dict[str, Any]:
    """Put another configuration in force; what is not said stays.

    Raises:
        CallerError: the caller may not, or something of it cannot be used: then nothing has changed.
    """
    if not caller.is_admin:
        raise NotAllowedError("only an administrator may change the scheduler: use [server] admin_token")
    try:
        wish = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CallerError(f"{error}; expected a JSON object with some of {', '.join(_WORDS)}") from error
    for word in wish:
        if word not in _WORDS:
            raise CallerError(f"{word[:50]!r}: unknown; expected some of {', '.join(_WORDS)}")
    told: Mapping[str, Any] = {**_in_words(manager.scheduling), **wish}
    problems = Problems()
    document = Document(
        problems,
        {"scheduler": {word: told[word] for word in _SCHEDULER_WORDS}, "lane": told["lanes"]},
        called={"scheduler": "scheduler", "lane": "lanes"},
    )
    scheduling = read_scheduling(
        document, [account.name for account in manager.accounts], new_weights="weights" in wish
    )
    problems.raise_any()
    before, after = _in_words(manager.scheduling), _in_words(scheduling)
    manager.set_scheduling(scheduling)
    changed = [f"{word} = {after[word]} instead of {before[word]}" for word in _WORDS if after[word] != before[word]]
    log.warning("the scheduler was changed over the control API: %s", "; ".join(changed) or "nothing differs")
    return show_scheduling(manager)


def _in_words(scheduling: Scheduling) -> dict[str, Any]:
    return {
        "policy": scheduling.policy,
        "share_by": list(scheduling.share_by),
        "weights": dict(scheduling.weights),
        "warm_up": scheduling.warm_up,
        "lanes": [{"scope": rule.scope, "models": rule.models, "policy": rule.policy} for rule in scheduling.lanes],
    }
