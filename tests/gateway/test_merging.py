"""The answers of several workers made one: nothing is told twice, nothing is left out."""

import msgspec
import pytest

from headgate.gateway import metrics
from headgate.gateway.merged_metrics import SHARED
from headgate.gateway.merging import MERGED, is_told_by_each, merge_accounts, merge_capacity


def call(name: str, lane: str, since: str) -> dict[str, str]:
    return {"call_id": name, "lane": lane, "since": since}


def lane(name: str, waiting: int, head_until: str | None) -> dict[str, object]:
    return {"lane": name, "waiting": waiting, "limit": name, "head_until": head_until}


def merged(path: str, *told: object, unanswered: tuple[str, ...] = ()) -> dict[str, object]:
    bodies = {number: msgspec.json.encode(each) for number, each in enumerate(told, 1)}
    found: dict[str, object] = msgspec.json.decode(MERGED[path](bodies, unanswered))
    return found


def test_a_queue_has_the_calls_of_all_lane_by_lane_in_the_order_of_each_worker():
    one = {
        "lanes": [lane("a", 2, "12:05"), lane("b", 1, None)],
        # By its policy the later call goes first here, and stays before the other.
        "waiting": [call("1", "a", "12:02"), call("2", "a", "12:00"), call("3", "b", "12:01")],
    }
    other = {"lanes": [lane("a", 1, "12:04")], "waiting": [call("4", "a", "12:01")]}
    found = merged("/api/v1/queue", one, other)
    assert [each["call_id"] for each in found["waiting"]] == ["4", "1", "2", "3"]
    assert [(each["lane"], each["waiting"], each["head_until"]) for each in found["lanes"]] == [
        ("a", 3, "12:04"),
        ("b", 1, None),
    ]
    assert "unanswered" not in found


def test_who_did_not_answer_is_named():
    found = merged("/api/v1/queue", {"lanes": [], "waiting": []}, unanswered=("worker 2",))
    assert found == {"lanes": [], "waiting": [], "unanswered": ["worker 2"]}


def plan(told: str | None, used: float) -> dict[str, object]:
    return {"period_s": 18_000, "models": None, "told_at": told, "used": used}


def test_accounts_have_the_newest_choices_of_all_and_the_newest_word_on_each_plan():
    def told(choices: list[str], plans: list[dict[str, object]]) -> dict[str, object]:
        return {"accounts": [{"account": "main", "plans": plans}], "choices": [{"at": each} for each in choices]}

    found = merge_accounts([told(["3", "1"], [plan("1", 0.1)]), told(["2"], [plan("2", 0.2)])])
    assert [each["at"] for each in found["choices"]] == ["3", "2", "1"]
    assert [each["used"] for each in found["accounts"][0]["plans"]] == [0.2]


def test_capacity_is_that_of_the_worker_where_calls_wait():
    def told(*agents: int | None) -> dict[str, object]:
        return {"capacity": [{"account": str(place), "agents": each} for place, each in enumerate(agents)]}

    found = merge_capacity([told(4, None, None), told(0, 3, None)])
    assert [each["agents"] for each in found["capacity"]] == [0, 3, None]


def test_a_status_adds_up_what_all_workers_do_and_names_each():
    def told(pid: int, in_flight: int, wait_s: float, opened: int) -> dict[str, object]:
        return {
            "process": {"pid": pid, "since": f"12:0{pid}", "memory_bytes": 10, "cpu_s": 0.1, "open_files": None},
            "calls": {"in_flight": in_flight, "waiting": 1, "longest_wait_s": wait_s},
            "connections": [{"host": "a", "opened": opened, "waited_s": 0.5}],
        }

    found = merged("/api/v1/status", told(1, 2, 0.5, 3), told(2, 3, 4.5, 4))
    assert found["calls"] == {"in_flight": 5, "waiting": 2, "longest_wait_s": 4.5}
    assert found["process"] == {"pid": 1, "since": "12:01", "memory_bytes": 20, "cpu_s": 0.2, "open_files": None}
    assert [each["pid"] for each in found["workers"]] == [1, 2]
    assert found["connections"] == [{"host": "a", "opened": 7, "waited_s": 1.0}]
    bearers = {**told(1, 1, 0.0, 0), "process": None, "connections": None}
    assert merged("/api/v1/status", bearers, bearers)["process"] is None


ONE = b"""# HELP headgate_attempts_total Attempts
# TYPE headgate_attempts_total counter
headgate_attempts_total{account="main"} 7.0
# HELP headgate_calls_in_flight Calls
# TYPE headgate_calls_in_flight gauge
headgate_calls_in_flight{account="main"} 2.0
# HELP headgate_provider_refusals_total 429s
# TYPE headgate_provider_refusals_total counter
headgate_provider_refusals_total 1.0
# HELP headgate_upstream_connections Connections
# TYPE headgate_upstream_connections gauge
headgate_upstream_connections{host="a",state="idle"} 3.0
"""
OTHER = ONE.replace(b'in_flight{account="main"} 2.0', b'in_flight{account="main"} 5.0').replace(
    b'host="a",state="idle"', b'host="b",state="idle"'
)


def test_metrics_add_gauges_up_label_counters_and_tell_the_stores_figures_once():
    text = MERGED["/metrics"]({1: ONE, 3: OTHER}, ("worker 2",)).decode().splitlines()
    lines = [line for line in text if not line.startswith("#")]
    assert lines == [
        'headgate_attempts_total{account="main"} 7.0',
        'headgate_calls_in_flight{account="main"} 7.0',
        'headgate_provider_refusals_total{worker="1"} 1.0',
        'headgate_provider_refusals_total{worker="3"} 1.0',
        'headgate_upstream_connections{host="a",state="idle"} 3.0',
        'headgate_upstream_connections{host="b",state="idle"} 3.0',
        'headgate_worker_answers{worker="1"} 1.0',
        'headgate_worker_answers{worker="3"} 1.0',
        'headgate_worker_answers{worker="2"} 0.0',
    ]


PROCESS_COUNTERS = (
    "headgate_provider_refusals",
    "headgate_coalesced_calls",
    "headgate_coalesced_saved_dollars",
    "headgate_batched_calls",
    "headgate_stalled_answers",
    "headgate_upstream_opened",
    "headgate_store_transactions",
    "headgate_one_that_comes_later",
)


@pytest.mark.parametrize("name", PROCESS_COUNTERS)
def test_what_each_process_counts_alone_is_told_of_each(name):
    def told(value: int) -> bytes:
        return f"# HELP {name}_total What\n# TYPE {name}_total counter\n{name}_total {value}.0\n".encode()

    text = MERGED["/metrics"]({1: told(1), 2: told(5)}, ()).decode()
    assert f'{name}_total{{worker="1"}} 1.0\n{name}_total{{worker="2"}} 5.0\n' in text


def test_what_is_in_the_store_and_no_more_is_told_once():
    assert {family.name for family in (*metrics._ledger(()), *metrics._limits(()))} == SHARED


def test_what_each_worker_tells_of_learned_limits_is_told_once():
    assert is_told_by_each(b'event: limit\ndata: {"at":1,"what":"learned","limit":"x"}\n\n')
    assert not is_told_by_each(b'event: limit\ndata: {"at":1,"what":"threshold","limit":"x"}\n\n')
    assert not is_told_by_each(b'event: settled\ndata: {"model":"\\"what\\":\\"learned\\""}\n\n')
