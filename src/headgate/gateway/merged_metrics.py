"""Metrics of several workers as one answer.

One rule: what counts all processes is taken from the first; gauges of one process are added up; its counters keep the
worker in a label, so that one that begins anew begins its own anew and no sum goes back.
"""

from collections.abc import Mapping, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

_ADDED_UP = {"headgate_calls_in_flight", "headgate_calls_waiting"}
_ALONE = ("headgate_provider_refusals", "headgate_store_", "process_")
_CONNECTIONS = "headgate_upstream_"


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
            elif _is_shared(family):
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
    adds = family.name in _ADDED_UP or (family.name.startswith(_CONNECTIONS) and family.type == "gauge")
    own = {} if adds or _is_shared(family) else {"worker": str(worker)}
    for sample in family.samples:
        labels = {**sample.labels, **own}
        before = [at for at, each in enumerate(found.samples) if each.labels == labels] if adds else []
        if before:
            known = found.samples[before[0]]
            found.samples[before[0]] = known._replace(value=known.value + sample.value)
        elif not sample.name.endswith("_created"):
            found.samples.append(sample._replace(labels=labels))


def _is_shared(family: Metric) -> bool:
    """Whether every worker tells the same of it: what is in the store."""
    return family.name not in _ADDED_UP and not family.name.startswith((*_ALONE, _CONNECTIONS))
