"""Money that a killed gateway left pending is released by its operator, beside a gateway that runs."""

import contextlib
import json
import re
import threading

import pytest
from real_headgate import Process, send, wait_until

from headgate.cli.reconciling import reconcile
from headgate.core.errors import CallerError

CALL = {"model": "claude-sonnet-4-5", "max_tokens": 1_000, "messages": [{"role": "user", "content": "hold the gate"}]}
HEADERS = {"content-type": "application/json"}
# What one call may cost at the most is 1,000 tokens of output at $15 a million and some input: two fit, three do not.
BUDGET = '[[limit]]\nscope = "account:main"\nusd_per_lifetime = 0.04'


def post_and_forget(gateway: Process) -> threading.Thread:
    def post() -> None:
        with contextlib.suppress(OSError):  # the gateway is killed
            send(gateway.url, "POST", "/v1/messages", json.dumps(CALL).encode(), HEADERS)

    thread = threading.Thread(target=post)
    thread.start()
    return thread


def money(gateway: Process) -> tuple[int, int, int]:
    (limit,) = send(gateway.url, "GET", "/api/v1/limits").json()["limits"]
    return limit["used"], limit["held"], limit["free"]


def test_what_a_killed_gateway_left_pending_is_settled_by_hand_once(bench):
    provider = bench.provider("--first-token-s", "1000")
    bench.configure(provider.url, BUDGET)
    # As the vendors are: nobody can be asked.
    bench.config.write_text(bench.config.read_text().replace("reconcile = true", "reconcile = false"))
    dying = bench.serve()
    posts = [post_and_forget(dying) for _ in range(2)]
    wait_until(lambda: len(bench.select("SELECT id FROM attempts")) == 2)
    running = bench.ask("reconcile")
    assert running == {"lost": []}, "what is on its way is not lost"
    dying.kill()
    for thread in posts:
        thread.join()
    gateway = bench.serve()
    one, two = bench.ask("reconcile")["lost"]
    pending = one["pending_micro_usd"]
    assert pending == two["pending_micro_usd"] > 15_000
    assert money(gateway) == (2 * pending, 0, 40_000 - 2 * pending)

    assert bench.ask("reconcile", one["call"], "--used-nothing")["settled"] == [
        {"id": one["id"], "settled": True, "hold_settled": True, "cost_micro_usd": 0, "pending_micro_usd": pending}
    ]
    assert money(gateway) == (pending, 0, 40_000 - pending)
    said = bench.start("reconcile", two["id"], "--cost-usd", "0.0123")
    assert said.ended() == 0, said.complained
    assert said.said == f"{two['id']}: settled at $0.0123; ${pending / 1e6:.4f} was pending for it\n"
    assert money(gateway) == (12_300, 0, 27_700)
    assert bench.ask("reconcile") == {"lost": []}
    rows = bench.select("SELECT id, state, cost_micro_usd, price_version FROM attempts ORDER BY cost_micro_usd")
    assert [(row["id"], row["state"], row["cost_micro_usd"], row["price_version"]) for row in rows] == [
        (one["id"], "reconciled", 0, "by hand"),
        (two["id"], "reconciled", 12_300, "by hand"),
    ]

    again = bench.start("reconcile", two["id"], "--used-nothing")
    assert again.ended() == 2
    assert again.complained.count("\n") == 1
    assert "no lost call" in again.complained
    assert money(gateway) == (12_300, 0, 27_700)
    gateway.terminate()
    assert gateway.ended() == 0


@pytest.mark.parametrize(
    ("calls", "options", "word"),
    [
        (["some-call"], {}, "--used-nothing"),
        ([], {"at_estimate": True}, "--all"),
        (["some-call"], {"used_nothing": True, "at_estimate": True}, "exclude each other"),
        (["some-call"], {"cost_usd": "-1"}, "'-1'"),
        (["some-call"], {"cost_usd": "nan"}, "'nan'"),
        (["some-call"], {"cost_usd": "ten"}, "'ten'"),
        ([], {"cost_usd": "0.01", "every": True}, "one call"),
        (["some-call", "other"], {"cost_usd": "0.01"}, "one call"),
        (["some-call"], {"cost_usd": "0.01"}, "no lost call 'some-call'"),
    ],
)
def test_what_is_asked_wrongly_is_refused_with_the_way_out(bench, calls, options, word):
    bench.configure("http://127.0.0.1:1", BUDGET)
    with pytest.raises(CallerError, match=re.escape(word)):
        reconcile(calls, bench.config, **options)
