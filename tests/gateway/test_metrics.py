"""`GET /metrics`, as Prometheus reads it."""

import json

import pytest
from prometheus_client.parser import text_string_to_metric_families
from standing_keys import CALL, a_standing_key, bearing

LIMITS = """
[[limit]]
scope = "account:*"
requests_per_minute = 600
[[limit]]
scope = "session:*"
slots = 2
[[limit]]
scope = "key:*"
usd_per_day = 5
"""


class Scraped:
    """Samples as Prometheus reads them."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families = list(text_string_to_metric_families(text))

    def __call__(self, name: str, **labels: str) -> float:
        samples = [sample for family in self.families for sample in family.samples if sample.name == name]
        (value,) = [sample.value for sample in samples if labels.items() <= sample.labels.items()]
        return value


async def scrape(stack, headers=()) -> Scraped:
    status, head, body = await stack.send("GET", "/metrics", headers=list(headers))
    assert status == 200
    assert head[b"content-type"].startswith(b"text/plain; version=0.0.4")
    return Scraped(body.decode())


def test_figures_are_those_of_the_ledger_and_of_the_limits(with_stack):
    async def test(stack):
        key = await a_standing_key(stack, "ci")
        admin = bearing("admin-token")
        session = (b"x-headgate-session", b"of-one-client")
        for _ in range(3):
            assert (await stack.send("POST", "/v1/messages", CALL, [*bearing(key.secret), session]))[0] == 200
        found = await scrape(stack, admin)
        _, _, usage = await stack.send("GET", "/api/v1/usage?group_by=account,model", headers=admin)
        (row,) = json.loads(usage)["groups"]
        of = {"account": row["account"], "model": row["model"]}
        assert found("headgate_requests_total", **of) == 3
        assert found("headgate_attempts_total", **of, state="done") == 3
        assert found("headgate_tokens_total", **of, kind="output") == row["output_tokens"] > 0
        assert found("headgate_cost_dollars_total", **of) == pytest.approx(row["cost_micro_usd"] / 1e6)
        assert found("headgate_limit_amount", scope="account:claude", dimension="requests") == 600
        assert found("headgate_limit_used", scope="key:ci") == row["cost_micro_usd"]
        assert found("headgate_calls_in_flight", account="claude") == 0
        assert found("headgate_upstream_opened_total") == 1
        assert found("headgate_upstream_connections", state="idle") == 1
        assert found("process_resident_memory_bytes") > 1e6
        assert "of-one-client" not in found.text

    with_stack(test, limits=LIMITS, server='admin_token = "env:ADMIN"', environ={"ADMIN": "admin-token"})


def test_a_keys_bearer_sees_no_metrics_and_nobody_changes_them(with_stack):
    async def test(stack):
        assert (await scrape(stack)).families  # nobody has made a key yet
        key = await a_standing_key(stack, "ci")
        assert (await stack.send("GET", "/metrics", headers=bearing(key.secret)))[0] == 403
        assert (await stack.send("GET", "/metrics"))[0] == 401
        assert (await stack.send("POST", "/metrics", b"{}"))[0] == 405

    with_stack(test)
