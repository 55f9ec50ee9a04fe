"""The queue over the control API: the calls that wait, in the order in which they go, and why.

One rule: a question changes nothing, and a key's bearer sees its own calls.
"""

from collections.abc import Sequence
from typing import NotRequired, TypedDict

from headgate.gateway.asked import Asked
from headgate.gateway.operations import Instant, Operation, Unanswered
from headgate.gateway.parameters import rfc3339
from headgate.runtime.monitor import WaitView

QUEUE_PATH = "/api/v1/queue"


class LaneTold(TypedDict):
    """A lane: how many wait in it, for which limit, and when its first goes at the latest."""

    lane: str
    waiting: int
    limit: str
    head_until: Instant | None


class WaitingTold(TypedDict):
    """A call that waits; `reason` says what places it where it is."""

    call_id: str
    lane: str
    limit: str
    account: str | None
    key: str | None
    run: str | None
    agent: str | None
    session: str | None
    model: str
    since: Instant
    deadline: Instant
    until: Instant | None
    policy: str
    reason: str


class QueueTold(TypedDict):
    """The lanes, and every call that waits."""

    lanes: list[LaneTold]
    waiting: list[WaitingTold]
    unanswered: NotRequired[Unanswered]


async def tell_queue(asked: Asked) -> QueueTold:
    """Answer `GET /api/v1/queue`."""
    return queue_json([each for each in asked.manager.queue() if asked.view.has_call(each)])


def queue_json(views: Sequence[WaitView]) -> QueueTold:
    """Give the queue in the control API's shape: the lanes with their heads, and every call that waits."""
    lanes: dict[str, LaneTold] = {}
    for view in views:
        lane = lanes.setdefault(
            view.lane,
            {"lane": view.lane, "waiting": 0, "limit": view.limit, "head_until": rfc3339(view.until_s)},
        )
        lane["waiting"] += 1
    waiting: list[WaitingTold] = [
        {
            "call_id": view.call,
            "lane": view.lane,
            "limit": view.limit,
            "account": view.account,
            "key": view.key,
            "run": view.run,
            "agent": view.agent,
            "session": view.session,
            "model": view.model,
            "since": rfc3339(view.since_s),
            "deadline": rfc3339(view.deadline_s),
            "until": rfc3339(view.until_s),
            "policy": view.policy,
            "reason": view.reason,
        }
        for view in views
    ]
    return {"lanes": list(lanes.values()), "waiting": waiting}


TELL_QUEUE = Operation(tell_queue, QueueTold, "The calls that wait, and why")
