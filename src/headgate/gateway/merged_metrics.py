"""Metrics of several workers as one answer.

One rule: what is in the store is taken from the first; gauges of a process are added up; its counters keep the worker
in a label, so that one that begins anew begins its own anew and no sum goes back. What is not known is a process's.
"""

from collections.abc import Mapping, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

SHARED = frozenset(
    f"headgate_{name}"
    for name in (
        *("attempts", "requests", "tokens", "cost_dollars", "unknown_cost", "wait_seconds"),
        *("limit_amount", "limit_used", "limit_held", "limit_learned"),
    )
)
"""What every worker tells the same of: the ledger's sums and the limits."""


class _Found(Collector):
    def __init__(self, found: Sequence[Metric]) -> None:
        self._found = found

    def collect(self) -> Sequence[Metric]:
        return self._found


def merge_metrics(bodies: Mapping[int, bytes], unanswered: Sequence[str]) -> bytes:
    """Give one text of those of the workers, by number, and of those who did not answer, by name."""
    merged: dict[str, Metric] = {}
    for worker, body in bodies.items():
        for family in text_string_to_metric_families(body.decode()):
            found = merged.get(family.name)
            if found is None:
                found = merged[family.name] = Metric(family.name, family.documentation, family.type)
            elif family.name in SHARED:
                continue
            _take(found, family, worker)
    up = GaugeMetricFamily("headgate_worker_answers", "Whether a worker answered just now", labels=["worker"])
    for number in bodies:
        up.add_metric([str(number)], 1)
    for name in unanswered:
        up.add_metric([name.removeprefix("worker ")], 0)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Found([*merged.values(), up]))
    return generate_latest(registry)


def _take(found: Metric, family: Metric, worker: int) -> None:
    """Add what a worker tells of a family to what was found of it."""
    is_shared = family.name in SHARED
    adds = not is_shared and family.type == "gauge" and family.name.startswith("headgate_")
    own = {} if adds or is_shared else {"worker": str(worker)}
    for sample in family.samples:
        labels = {**sample.labels, **own}
        before = [at for at, each in enumerate(found.samples) if each.labels == labels] if adds else []
        if before:
            known = found.samples[before[0]]
            found.samples[before[0]] = known._replace(value=known.value + sample.value)
        elif not sample.name.endswith("_created"):
            found.samples.append(sample._replace(labels=labels))
