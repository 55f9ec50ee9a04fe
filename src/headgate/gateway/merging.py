"""Merging: the answers of several workers to one question, made one.

One rule: what all found in the store that they share is taken from the first; what each knows alone is put together:
calls that wait and choices one after the other, gauges added up, counters with the worker they are of.
"""

import heapq
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from headgate.gateway.merged_metrics import merge_metrics

MOST_CHOICES = 50
"""As many as one worker tells."""

Merge = Callable[[Mapping[int, bytes], Sequence[str]], bytes]


def merge_queue(told: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Put the calls that wait together, lane by lane; between workers, who has waited longest is first."""
    lanes: dict[str, dict[str, Any]] = {}
    lines: dict[str, list[list[dict[str, Any]]]] = {}
    for each in told:
        for lane in each["lanes"]:
            found = lanes.setdefault(lane["lane"], {**lane, "waiting": 0, "head_until": None})
            found["waiting"] += lane["waiting"]
            known = [until for until in (found["head_until"], lane["head_until"]) if until is not None]
            found["head_until"] = min(known, default=None)
        own: dict[str, list[dict[str, Any]]] = {}
        for call in each["waiting"]:
            own.setdefault(call["lane"], []).append(call)
        for lane_name, line in own.items():
            lines.setdefault(lane_name, []).append(line)
    # Each worker's order stays, whatever the policy is; `merge` only compares the heads that are left.
    waiting = [call for name in lines for call in heapq.merge(*lines[name], key=lambda call: call["since"])]
    return {"lanes": list(lanes.values()), "waiting": waiting}


def merge_accounts(told: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Put the newest choices together, and of each plan window what was told last."""
    first = told[0]
    choices = [choice for each in told for choice in each.get("choices") or ()]
    choices.sort(key=lambda choice: choice["at"], reverse=True)
    rows = []
    for place, row in enumerate(first["accounts"]):
        newest: dict[tuple[Any, Any], dict[str, Any]] = {}
        for plan in (plan for each in told for plan in each["accounts"][place]["plans"]):
            key = (plan["period_s"], plan["models"])
            if key not in newest or (plan["told_at"] or "") > (newest[key]["told_at"] or ""):
                newest[key] = plan
        rows.append({**row, "plans": list(newest.values())})
    return {**first, "accounts": rows, "choices": choices[:MOST_CHOICES]}


def merge_capacity(told: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Give for each account the answer of the worker where the fewest more can start: calls may wait there alone."""

    def most(row: dict[str, Any]) -> float:
        return float("inf") if row["agents"] is None else row["agents"]

    rows = zip(*(each["capacity"] for each in told), strict=False)
    return {**told[0], "capacity": [min(of_account, key=most) for of_account in rows]}


def merge_status(told: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Add up the calls, the connections to each host, and what the processes use; each worker stands beside that."""
    calls = [each["calls"] for each in told]
    summed: dict[str, Any] = {name: sum(each[name] for each in calls) for name in ("in_flight", "waiting")}
    summed["longest_wait_s"] = max(each["longest_wait_s"] for each in calls)
    merged = {**told[0], "calls": summed}
    processes = [each["process"] for each in told if each["process"] is not None]
    if processes:
        merged["process"] = {
            **{name: _added([each[name] for each in processes]) for name in processes[0]},
            "pid": processes[0]["pid"],
            "since": min(each["since"] for each in processes),
        }
        merged["workers"] = processes
        hosts: dict[str, list[dict[str, Any]]] = {}
        for host in (host for each in told for host in each["connections"] or ()):
            hosts.setdefault(host["host"], []).append(host)
        merged["connections"] = [
            {**{name: _added([each[name] for each in of_host]) for name in of_host[0]}, "host": name}
            for name, of_host in sorted(hosts.items())
        ]
    return merged


def _added(figures: Sequence[Any]) -> Any:
    known = [each for each in figures if isinstance(each, int | float)]
    return round(sum(known), 3) if known else None


def _of_json(merge: Callable[[Sequence[dict[str, Any]]], dict[str, Any]]) -> Merge:
    def merged(bodies: Mapping[int, bytes], unanswered: Sequence[str]) -> bytes:
        shape = merge([msgspec.json.decode(body) for body in bodies.values()])
        return msgspec.json.encode({**shape, "unanswered": list(unanswered)} if unanswered else shape)

    return merged


MERGED: Mapping[str, Merge] = {
    "/api/v1/queue": _of_json(merge_queue),
    "/api/v1/status": _of_json(merge_status),
    "/api/v1/accounts": _of_json(merge_accounts),
    "/api/v1/capacity": _of_json(merge_capacity),
    "/metrics": merge_metrics,
}
"""What is asked of all workers, with how their answers become one: their bodies by number, and who did not answer."""


def is_told_by_each(event: bytes) -> bool:
    """Whether each worker tells an event by itself: what one learned of limits the others hear of, and say too."""
    return event.startswith(b"event: limit\n") and b'"what":"learned"' in event
