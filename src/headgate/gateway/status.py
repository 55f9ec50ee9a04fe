"""The status of a gateway at a glance: its process, calls, accounts, the limits that are most used, connections.

One rule: a question changes nothing. A key's bearer sees its own calls and limits, and of the process nothing.
"""

import os
from importlib.metadata import version
from typing import Annotated, NotRequired, TypedDict

import psutil
from msgspec import Meta

from headgate.adapters.providers.http import HostStats
from headgate.core.ledger import UsageGroup, UsageQuery
from headgate.gateway.accounts import HealthTold, accounts_json
from headgate.gateway.asked import Asked, Hosts
from headgate.gateway.operations import Instant, MicroUsd, Operation, Unanswered
from headgate.gateway.parameters import rfc3339
from headgate.runtime.monitor import LimitView

__all__ = ["STATUS_PATH", "TELL_STATUS", "StatusTold"]

STATUS_PATH = "/api/v1/status"

MOST_LIMITS = 10
_HOUR_S = 3_600.0


class ProcessTold(TypedDict):
    """The process that answered. `cpu_s` is user and system time since it began."""

    pid: int
    since: Instant
    memory_bytes: Annotated[int, Meta(description="Resident.")]
    cpu_s: float
    open_files: int | None
    threads: int


class CallsTold(TypedDict):
    """The calls on their way and those that wait; `longest_wait_s` is of those that wait now."""

    in_flight: int
    waiting: int
    longest_wait_s: float


class LastHourTold(TypedDict):
    """The calls of the last hour, of all processes."""

    requests: int
    failed: int
    refused: int
    input_tokens: int
    output_tokens: int
    cost_micro_usd: MicroUsd
    unknown_cost: int


class HealthOfTold(HealthTold):
    """How one account is."""

    account: str
    in_flight: int


class TightTold(TypedDict):
    """A limit, and which part of it is used or held; above 1 where more was used than was known before."""

    name: str
    scope: str
    dimension: str
    per: str
    share: float
    free: int
    resets_at: Instant | None


class HostTold(TypedDict):
    """The connections to one provider's host: how many there are and may be, and what became of calls that need one."""

    host: str
    bound: int
    open: int
    idle: int
    in_use: int
    waiting: int
    opened: int
    reused: int
    stale_retries: int
    grown: int
    shrunk: int
    waited_s: float


class StatusTold(TypedDict):
    """How a gateway is; `process` and `connections` are null for a key's bearer.

    Where several workers serve, `process` has what all of `workers` use.
    """

    at: Instant
    version: str
    process: ProcessTold | None
    calls: CallsTold
    last_hour: LastHourTold
    accounts: list[HealthOfTold]
    tightest: list[TightTold]
    connections: list[HostTold] | None
    workers: NotRequired[list[ProcessTold]]
    unanswered: NotRequired[Unanswered]


async def tell_status(asked: Asked) -> StatusTold:
    """Answer `GET /api/v1/status`."""
    manager, view = asked.manager, asked.view
    sees_all = view.caller.key is None
    now_s = manager.clock.now_s()
    waiting = [each for each in manager.queue() if view.has_call(each)]
    accounts = await accounts_json(manager, view)
    used = await manager.usage(UsageQuery((), now_s - _HOUR_S, only=view.only))
    limits = [each for each in await manager.limits() if view.has_limit(each.scope)]
    return {
        "at": rfc3339(now_s),
        "version": version("headgate"),
        "process": _process() if sees_all else None,
        "calls": {
            "in_flight": sum(view.has_call(each.attempt.scopes) for each in manager.in_flight()),
            "waiting": len(waiting),
            "longest_wait_s": round(max((now_s - each.since_s for each in waiting), default=0.0), 3),
        },
        "last_hour": _last_hour(used[0] if used else UsageGroup({})),
        "accounts": [
            {
                "account": each["account"],
                "in_flight": each["in_flight"],
                "health": each["health"],
                "why": each["why"],
                "circuits": each["circuits"],
            }
            for each in accounts["accounts"]
        ],
        "tightest": [_tight(each) for each in sorted(limits, key=_most_used_first)[:MOST_LIMITS]],
        "connections": _connections(asked.hosts) if sees_all else None,
    }


def _process() -> ProcessTold:
    process = psutil.Process()
    with process.oneshot():
        times = process.cpu_times()
        return {
            "pid": os.getpid(),
            "since": rfc3339(process.create_time()),
            "memory_bytes": process.memory_info().rss,
            "cpu_s": round(times.user + times.system, 3),
            "open_files": process.num_fds() if hasattr(process, "num_fds") else None,
            "threads": process.num_threads(),
        }


def _last_hour(used: UsageGroup) -> LastHourTold:
    return {
        "requests": used.requests,
        "failed": used.failed,
        "refused": used.refused,
        "input_tokens": used.input_tokens,
        "output_tokens": used.output_tokens,
        "cost_micro_usd": used.cost_micro_usd,
        "unknown_cost": used.unknown_cost,
    }


def _most_used_first(view: LimitView) -> tuple[float, str]:
    return -view.share, view.name


def _tight(view: LimitView) -> TightTold:
    return {
        "name": view.name,
        "scope": view.scope,
        "dimension": view.dimension,
        "per": view.per,
        "share": round(view.share, 4),
        "free": view.free,
        "resets_at": rfc3339(view.resets_s),
    }


def _connections(hosts: Hosts) -> list[HostTold]:
    return [_host(host, figures) for host, figures in sorted(hosts().items())]


def _host(host: str, figures: HostStats) -> HostTold:
    return {
        "host": host,
        "bound": figures.bound,
        "open": figures.open,
        "idle": figures.idle,
        "in_use": figures.in_use,
        "waiting": figures.waiting,
        "opened": figures.opened,
        "reused": figures.reused,
        "stale_retries": figures.stale_retries,
        "grown": figures.grown,
        "shrunk": figures.shrunk,
        "waited_s": round(figures.waited_s, 3),
    }


TELL_STATUS = Operation(tell_status, StatusTold, "How the gateway is, at a glance")
