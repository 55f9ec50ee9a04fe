"""A gateway's beginning and end, good and bad: what its owner sees is one clear line and the right exit code."""

import http.client
import json
import socket
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from real_headgate import WITHIN_S, Process, counted, send, wait_until

CALL = {"model": "claude-sonnet-4-5", "max_tokens": 60, "messages": [{"role": "user", "content": "hold the gate"}]}
HEADERS = {"content-type": "application/json", "x-provider-output-tokens": "60"}
ONE_SLOT = '[[limit]]\nscope = "account:main"\nslots = 1'


def complains_in_one_line(process: Process, *words: str) -> None:
    assert process.complained.count("\n") == 1, process.complained
    assert "Traceback" not in process.complained
    for word in words:
        assert word in process.complained


def test_sigterm_lets_what_runs_end_and_tells_what_waits_to_come_back(bench):
    provider = bench.provider("--first-token-s", "0.01", "--tokens-per-second", "60")
    bench.configure(provider.url, ONE_SLOT)
    gateway = bench.serve()
    with (
        closing(http.client.HTTPConnection(urlsplit(gateway.url).netloc, timeout=WITHIN_S)) as running,
        closing(http.client.HTTPConnection(urlsplit(gateway.url).netloc, timeout=WITHIN_S)) as waiting,
    ):
        running.request("POST", "/v1/messages", json.dumps({**CALL, "stream": True}), HEADERS)
        stream = running.getresponse()
        begun = stream.read1()
        waiting.request("POST", "/v1/messages", json.dumps(CALL), HEADERS)
        wait_until(lambda: send(gateway.url, "GET", "/api/v1/queue").json()["waiting"])
        gateway.terminate()
        refusal = waiting.getresponse()
        assert counted(provider)["requests_running"] == 1, "the waiting call is told at once"
        assert refusal.status == 529, "what Anthropic's clients know as overloaded; OpenAI's are told 503"
        assert refusal.getheader("x-should-retry") == "true"
        assert json.load(refusal)["error"]["type"] == "overloaded_error"
        assert (begun + stream.read()).rstrip().endswith(b'data: {"type":"message_stop"}')
    assert gateway.ended() == 0, gateway.complained
    assert "Traceback" not in gateway.complained
    assert "draining" in gateway.said
    (row,) = bench.select("SELECT state, output_tokens FROM attempts")
    assert (row["state"], row["output_tokens"]) == ("done", counted(provider)["output_tokens"])


def test_a_port_in_use_is_named(bench):
    bench.configure("http://127.0.0.1:1")
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        gateway = bench.start("serve", "--listen", address)
        assert gateway.ended() == 2
    complains_in_one_line(gateway, address, "something listens there already")


def test_a_broken_configuration_is_told_by_file_and_line_and_nothing_is_started(bench):
    bench.configure("http://127.0.0.1:1", '[[limit]]\nscope = "account:main"\nrequests_per_minuet = 50')
    gateway = bench.start("serve")
    assert gateway.ended() == 2
    line = bench.config.read_text().splitlines().index("requests_per_minuet = 50") + 1
    complains_in_one_line(gateway, f"{bench.config}:{line}:", "requests_per_minuet", "requests_per_minute")
    assert gateway.said == ""
    assert not (bench.folder / "headgate.sqlite").exists()


@pytest.mark.parametrize("command", [("serve", "--listen", "127.0.0.1:0"), ("usage",)], ids=lambda c: c[0])
def test_a_corrupt_database_is_named(bench, command):
    bench.configure("http://127.0.0.1:1")
    (bench.folder / "headgate.sqlite").write_bytes(b"this was a shopping list " * 400)
    process = bench.start(*command)
    assert process.ended() == 1
    complains_in_one_line(process, "headgate.sqlite", "no SQLite database")


def test_a_database_that_is_locked_for_a_moment_is_waited_for(bench):
    bench.configure("http://127.0.0.1:1")
    bench.ask("usage")  # makes the file
    with closing(sqlite3.connect(bench.folder / "headgate.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        gateway = bench.start("serve", "--listen", "127.0.0.1:0")
        wait_until(lambda: "headgate.sqlite" in opened_by(gateway) or not gateway.runs)
        assert gateway.said == ""
        other.execute("ROLLBACK")
    wait_until(lambda: gateway.said.endswith("\n") or not gateway.runs)
    assert "serving" in gateway.said, gateway.complained
    gateway.terminate()
    assert gateway.ended() == 0


def test_a_provider_that_is_not_there_is_told_in_its_own_shape_and_costs_nothing(bench):
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        nobody = f"http://127.0.0.1:{server.getsockname()[1]}"
    bench.configure(nobody, f"{ONE_SLOT}\nusd_per_lifetime = 1\n[retries]\nattempts = 2\nfirst_delay_s = 0.01")
    gateway = bench.serve()
    answer = send(gateway.url, "POST", "/v1/messages", json.dumps(CALL).encode(), HEADERS)
    assert answer.status in {502, 503, 529}
    assert answer.json()["type"] == "error"
    assert nobody.removeprefix("http://") in answer.json()["error"]["message"]
    rows = bench.select("SELECT state, input_tokens, output_tokens, cost_micro_usd, error_type FROM attempts")
    assert [(row["state"], row["input_tokens"], row["cost_micro_usd"]) for row in rows] == [("failed", 0, 0)] * 2
    assert all(limit["used"] == limit["held"] == 0 for limit in bench.ask("limits")["limits"])
    gateway.terminate()
    assert gateway.ended() == 0
    assert "Traceback" not in gateway.complained


def opened_by(process: Process) -> set[str]:
    """Give the names of the files that a process has open."""
    return {Path(file.path).name for file in psutil.Process(process.popen.pid).open_files()}


def test_sighup_puts_the_configuration_in_force_as_it_is_now_or_nothing_of_it(bench):
    provider = bench.provider("--first-token-s", "0.01", "--tokens-per-second", "600")
    bench.configure(provider.url, ONE_SLOT)
    gateway = bench.serve()
    bench.configure(provider.url, ONE_SLOT.replace("1", "3") + "\nrequests_per_day = 1")
    gateway.hang_up()
    wait_until(lambda: "reloaded, 2 changes" in gateway.said)
    assert "limit account:main: 3 calls at once instead of 1 call at once" in gateway.said
    assert send(gateway.url, "POST", "/v1/messages", json.dumps(CALL).encode(), HEADERS).status == 200
    bench.configure(provider.url, "requests_per_day = 5")
    gateway.hang_up()
    wait_until(lambda: "not reloaded, nothing has changed" in gateway.complained)
    late = {**HEADERS, "x-headgate-max-wait": "0"}
    assert send(gateway.url, "POST", "/v1/messages", json.dumps(CALL).encode(), late).status == 429
    gateway.terminate()
    assert gateway.ended() == 0, gateway.complained
