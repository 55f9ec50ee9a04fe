"""Steering: the scheduler's policies over the control API, read and changed while calls wait.

One rule: a change is all or nothing, and only an administrator makes one; it holds until this process ends or the
configuration is read again and says otherwise than before. The log tells of it.
"""

import logging
from collections.abc import Mapping
from typing import Any, Required, TypedDict

import msgspec

from headgate.adapters.config.document import Document
from headgate.adapters.config.scheduling import read_scheduling
from headgate.adapters.config.tables import Problems
from headgate.core.errors import CallerError
from headgate.core.scheduling import POLICIES, Scheduling
from headgate.gateway.asked import Asked
from headgate.gateway.operations import Operation
from headgate.runtime.manager import Manager

log = logging.getLogger("headgate.gateway")

SCHEDULER_PATH = "/api/v1/scheduler"
MOST_CHANGE_BYTES = 64 * 1024

BOUNDS = {name: getattr(make(), "bound", "as the policy that it chooses") for name, make in POLICIES.items()}
"""Each policy with the bound on waiting that it keeps."""


class LaneRuleTold(TypedDict):
    """The policy of the lanes whose scope and models fit two patterns."""

    scope: str
    models: str
    policy: str


class SchedulingTold(TypedDict):
    """The policies in force, in the words of the configuration."""

    policy: str
    share_by: list[str]
    weights: dict[str, float]
    warm_up: bool
    lanes: list[LaneRuleTold]


class LaneRuleWish(TypedDict, total=False):
    """A lane's policy: without a scope or models it is of all."""

    scope: str
    models: str
    policy: Required[str]


class SchedulingWish(TypedDict, total=False):
    """What to change; what is not said stays."""

    policy: str
    share_by: list[str]
    weights: dict[str, float]
    warm_up: bool
    lanes: list[LaneRuleWish]


class SchedulerTold(SchedulingTold):
    """The policies in force, and all that there are, with the bound on waiting that each keeps."""

    policies: dict[str, str]


_SCHEDULER_WORDS = ("policy", "share_by", "weights", "warm_up")
_WORDS = tuple(SchedulingWish.__annotations__)


async def tell_scheduling(asked: Asked) -> SchedulerTold:
    """Answer `GET /api/v1/scheduler`."""
    return show_scheduling(asked.manager)


async def order_scheduling(asked: Asked) -> SchedulerTold:
    """Answer `PUT /api/v1/scheduler`; raises as `change_scheduling`."""
    return change_scheduling(asked.manager, await asked.exchange.body(MOST_CHANGE_BYTES))


def show_scheduling(manager: Manager) -> SchedulerTold:
    """Give the configuration in force, and the policies that there are with the bound on waiting each keeps."""
    return {**_in_words(manager.scheduling), "policies": dict(BOUNDS)}


def change_scheduling(manager: Manager, body: bytes) -> SchedulerTold:
    """Put another configuration in force; what is not said stays.

    Raises:
        CallerError: something of it cannot be used: then nothing has changed.
    """
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
    before: Mapping[str, Any] = {**_in_words(manager.scheduling)}
    after: Mapping[str, Any] = {**_in_words(scheduling)}
    manager.set_scheduling(scheduling)
    changed = [f"{word} = {after[word]} instead of {before[word]}" for word in _WORDS if after[word] != before[word]]
    log.warning("the scheduler was changed over the control API: %s", "; ".join(changed) or "nothing differs")
    return show_scheduling(manager)


def _in_words(scheduling: Scheduling) -> SchedulingTold:
    return {
        "policy": scheduling.policy,
        "share_by": list(scheduling.share_by),
        "weights": dict(scheduling.weights),
        "warm_up": scheduling.warm_up,
        "lanes": [{"scope": rule.scope, "models": rule.models, "policy": rule.policy} for rule in scheduling.lanes],
    }


SHOW_SCHEDULING = Operation(tell_scheduling, SchedulerTold, "The policies in force")
CHANGE_SCHEDULING = Operation(
    order_scheduling,
    SchedulerTold,
    "Change them, until the process ends or the file is read again and says otherwise",
    takes=SchedulingWish,
    fails=(529,),
    only_admin="change the scheduler",
)
