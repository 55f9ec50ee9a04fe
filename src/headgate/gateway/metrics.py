"""`GET /metrics`: figures for Prometheus, in its text format.

One rule: counters are the ledger's, so that they go on over restarts and count all processes; gauges are of now, and
of this process where they say so. No key and no name of a run, an agent or a session stands in a label: their number
has no bound.
"""

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from headgate.adapters.providers.http import HostStats
from headgate.adapters.sqlite.database import StoreStats
from headgate.core.ledger import UsageGroup, UsageQuery
from headgate.gateway.asked import Hosts
from headgate.runtime.manager import Manager
from headgate.runtime.monitor import LimitView, WaitView

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

MOST_LIMITS = 500
"""Limits in one answer: the accounts' first, as they are configured, then those of teams, keys and tags."""

_BOUNDED = ("account:", "team:", "key:", "tag:", "*")
_TOKENS = ("input", "output", "cache_read", "cache_write", "reasoning")
_OF_A_LIMIT = ["scope", "models", "dimension", "per"]


class _Found(Collector):
    def __init__(self, found: Iterable[Metric]) -> None:
        """Give what was found."""
        self._found = found

    def collect(self) -> Iterable[Metric]:
        """Give it, as the registry asks."""
        return self._found


async def metrics(manager: Manager, hosts: Hosts, store: StoreStats) -> bytes:
    """Give the figures as they stand.

    Raises:
        StoreError: the store cannot be read.
    """
    used = await manager.usage(UsageQuery(("account", "model", "state")))
    limits = [each for each in await manager.limits() if each.scope.startswith(_BOUNDED) and "|" not in each.scope]
    registry = CollectorRegistry(auto_describe=False)
    families = [
        *_ledger(used),
        *_calls(manager),
        *_limits(limits[:MOST_LIMITS]),
        *_connections(hosts()),
        *_store(store),
    ]
    registry.register(_Found(families))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


def _ledger(used: Iterable[UsageGroup]) -> list[Metric]:
    def counter(name: str, what: str, *more: str) -> CounterMetricFamily:
        return CounterMetricFamily(f"headgate_{name}", what, labels=["account", "model", *more])

    attempts = counter("attempts", "Attempts, by how they ended", "state")
    requests = counter("requests", "Requests that reached a provider")
    tokens = counter("tokens", "Tokens used", "kind")
    cost = counter("cost_dollars", "Dollars spent, where the price is known")
    unknown = counter("unknown_cost", "Attempts whose cost is not known")
    waited = counter("wait_seconds", "Seconds that calls waited to be admitted")
    sums: dict[tuple[str, str], list[UsageGroup]] = {}
    for group in used:
        account, model, state = (group.group[name] or "" for name in ("account", "model", "state"))
        if group.attempts:
            attempts.add_metric([account, model, state], group.attempts)
        sums.setdefault((account, model), []).append(group)
    for (account, model), groups in sums.items():
        names = [account, model]
        requests.add_metric(names, sum(each.requests for each in groups))
        cost.add_metric(names, sum(each.cost_micro_usd for each in groups) / 1e6)
        unknown.add_metric(names, sum(each.unknown_cost for each in groups))
        waited.add_metric(names, sum(each.wait_ms for each in groups) / 1e3)
        for kind in _TOKENS:
            tokens.add_metric([*names, kind], sum(getattr(each, f"{kind}_tokens") for each in groups))
    return [attempts, requests, tokens, cost, unknown, waited]


def _calls(manager: Manager) -> list[Metric]:
    running = GaugeMetricFamily(
        "headgate_calls_in_flight", "Calls of this process that are on their way", labels=["account"]
    )
    for account in manager.accounts:
        running.add_metric([account.name], sum(each.account == account.name for each in manager.in_flight()))
    waiting = GaugeMetricFamily("headgate_calls_waiting", "Calls of this process that wait", labels=["limit"])
    for limit, count in _counted(manager.queue()).items():
        waiting.add_metric([limit], count)
    refused = CounterMetricFamily(
        "headgate_provider_refusals", "429s that providers answered to this process", value=manager.refused_by_providers
    )
    stalled = CounterMetricFamily(
        "headgate_stalled_answers", "Answers to this process that fell silent before their end", labels=["account"]
    )
    for account in manager.accounts:
        stalled.add_metric([account.name], manager.pool.health.stalled[account.name])
    shared = CounterMetricFamily(
        "headgate_coalesced_calls",
        "Calls of this process that shared another's answer",
        value=manager.coalescing.shared,
    )
    saved = CounterMetricFamily(
        "headgate_coalesced_saved_dollars", "What these saved", value=manager.coalescing.saved_micro_usd / 1e6
    )
    batched = CounterMetricFamily(
        "headgate_batched_calls",
        "Requests for embeddings to this process that were made with others",
        value=manager.batching.batched,
    )
    return [running, waiting, refused, stalled, shared, saved, batched]


def _counted(queue: Iterable[WaitView]) -> dict[str, int]:
    """Count who waits by the kind of scope, where scopes have no bound."""
    found: dict[str, int] = {}
    for view in queue:
        limit = (
            view.limit if view.limit.startswith(_BOUNDED) and "|" not in view.limit else view.limit.partition(":")[0]
        )
        found[limit] = found.get(limit, 0) + 1
    return found


def _limits(limits: Iterable[LimitView]) -> list[Metric]:
    amount = GaugeMetricFamily("headgate_limit_amount", "What a limit gives", labels=_OF_A_LIMIT)
    used = GaugeMetricFamily("headgate_limit_used", "What of a limit is used now", labels=_OF_A_LIMIT)
    held = GaugeMetricFamily("headgate_limit_held", "What of a limit calls on their way hold", labels=_OF_A_LIMIT)
    learned = GaugeMetricFamily("headgate_limit_learned", "What a provider was found to give", labels=_OF_A_LIMIT)
    for view in limits:
        names = [view.scope, view.models or "*", view.dimension, view.per]
        amount.add_metric(names, view.amount)
        used.add_metric(names, view.used)
        held.add_metric(names, view.held)
        if view.learned is not None:
            learned.add_metric(names, view.learned)
    return [amount, used, held, learned]


def _store(stats: StoreStats) -> list[Metric]:
    def counter(name: str, what: str, value: float) -> Metric:
        return CounterMetricFamily(f"headgate_store_{name}", what, value=value)

    return [
        counter("transactions", "Transactions of this process on the store", stats.transactions),
        counter("pieces", "Pieces of work in these transactions", stats.pieces),
        counter("busy_seconds", "Seconds in these transactions", stats.busy_s),
        counter("lock_waits", "Transactions that found the store locked by another process", stats.lock_waits),
        counter("lock_wait_seconds", "Seconds that these waited for it", stats.lock_wait_s),
    ]


def _connections(hosts: Mapping[str, HostStats]) -> list[Metric]:
    now = GaugeMetricFamily("headgate_upstream_connections", "Connections to providers", labels=["host", "state"])
    bound = GaugeMetricFamily("headgate_upstream_bound", "Connections that there may be now", labels=["host"])
    waiting = GaugeMetricFamily("headgate_upstream_waiting", "Calls that wait for a connection", labels=["host"])
    waited = CounterMetricFamily(
        "headgate_upstream_wait_seconds", "Seconds that calls waited for a connection", labels=["host"]
    )
    opened = CounterMetricFamily("headgate_upstream_opened", "Connections that were opened", labels=["host"])
    reused = CounterMetricFamily("headgate_upstream_reused", "Calls on a connection that was there", labels=["host"])
    for host, figures in hosts.items():
        now.add_metric([host, "in_use"], figures.in_use)
        now.add_metric([host, "idle"], figures.idle)
        bound.add_metric([host], figures.bound)
        waiting.add_metric([host], figures.waiting)
        waited.add_metric([host], figures.waited_s)
        opened.add_metric([host], figures.opened)
        reused.add_metric([host], figures.reused)
    return [now, bound, waiting, waited, opened, reused]
