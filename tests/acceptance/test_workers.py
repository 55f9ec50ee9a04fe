"""Several workers behind one port: what one process does, they do together, and nobody can tell which one answered."""

import http.client
import json
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from urllib.parse import urlsplit

import psutil
import pytest
from real_headgate import WITHIN_S, Answer, Bench, Process, counted, differences, send, wait_until

CALL = {"model": "claude-sonnet-4-5", "max_tokens": 60, "messages": [{"role": "user", "content": "hold the gate"}]}
HEADERS = {"content-type": "application/json", "x-provider-output-tokens": "60"}
ONE_SLOT = '[[limit]]\nscope = "account:main"\nslots = 1'
ADMIN = {"authorization": "Bearer sk-planted-provider-secret"}
WITH_ADMIN = f'{ONE_SLOT}\n[server]\nadmin_token = "env:PROVIDER_KEY"'
SLOW = ("--first-token-s", "0.01", "--tokens-per-second", "60")
FAST = ("--first-token-s", "0.01", "--tokens-per-second", "6000")


class Client:
    """A connection that stays, and so with one worker."""

    def __init__(self, gateway: Process) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(gateway.url).netloc, timeout=WITHIN_S)
        self._connection.connect()

    def ask(self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None) -> Answer:
        self.begin(method, path, body, headers)
        return self.end()

    def begin(self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None) -> None:
        told = None if body is None else json.dumps(body)
        self._connection.request(method, path, told, {**HEADERS, **(headers or {})})

    def end(self) -> Answer:
        reply = self._connection.getresponse()
        return Answer(reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read())

    def line(self) -> bytes:
        return self.reply.readline()

    def open(self, path: str) -> None:
        self.begin("GET", path)
        self.reply = self._connection.getresponse()

    def close(self) -> None:
        self._connection.close()


@contextmanager
def clients(gateway: Process, number: int = 2) -> Iterator[list[Client]]:
    """Give connections to the first worker, the second, the first again, and so on: each goes where there are least."""
    with ExitStack() as stack:
        yield [stack.enter_context(closing(Client(gateway))) for _ in range(number)]


def workers(gateway: Process) -> list[psutil.Process]:
    return psutil.Process(gateway.popen.pid).children()


def serve(bench: Bench, more: str = ONE_SLOT, provider: tuple[str, ...] = FAST) -> tuple[Process, Process]:
    started = bench.provider(*provider)
    bench.configure(started.url, more)
    return bench.serve("--workers", "2"), started


def end(gateway: Process) -> None:
    gateway.terminate()
    assert gateway.ended() == 0, gateway.complained
    assert "Traceback" not in gateway.complained


def slots(client: Client, headers: dict[str, str] | None = None) -> int:
    (limit,) = client.ask("GET", "/api/v1/limits", headers=headers).json()["limits"]
    amount: int = limit["amount"]
    return amount


def test_connections_are_spread_evenly(bench):
    gateway, _ = serve(bench)
    port = urlsplit(gateway.url).port

    def counts() -> list[int]:
        each = (worker.net_connections("tcp") for worker in workers(gateway))
        return [sum(found.laddr.port == port and found.status == "ESTABLISHED" for found in own) for own in each]

    with clients(gateway, 64) as all_of_them:
        assert [client.ask("GET", "/healthz").status for client in all_of_them] == [200] * 64
        assert counts() == [32, 32]
        for client in all_of_them[::2]:  # all of one worker's
            client.close()
        wait_until(lambda: sorted(counts()) == [0, 32])
        with clients(gateway, 16) as more:
            assert [client.ask("GET", "/healthz").status for client in more] == [200] * 16
            assert sorted(counts()) == [16, 32], "those that come go where there are fewest"
    end(gateway)


def test_a_worker_that_is_killed_loses_nothing_and_is_started_anew(bench):
    gateway, provider = serve(bench, '[[limit]]\nscope = "account:main"\nslots = 8\nusd_per_lifetime = 5', SLOW)
    before = workers(gateway)

    def post(number: int) -> int:
        with closing(http.client.HTTPConnection(urlsplit(gateway.url).netloc, timeout=WITHIN_S)) as connection:
            try:
                connection.request("POST", "/v1/messages", json.dumps(CALL), HEADERS)
                return connection.getresponse().status
            except OSError:
                return 0

    with ThreadPoolExecutor(32) as threads:
        answers = [threads.submit(post, number) for number in range(32)]
        wait_until(lambda: counted(provider)["requests_received"] >= 8)
        before[0].kill()
        statuses = [answer.result() for answer in answers]
    assert set(statuses) == {0, 200}, "those of the worker that was killed break off, and no other"
    assert statuses.count(200) >= 16
    wait_until(lambda: len(workers(gateway)) == 2 and before[0] not in workers(gateway))
    with clients(gateway) as both:
        assert [client.ask("POST", "/v1/messages", CALL).status for client in both] == [200, 200]
    assert f"worker 1 (process {before[0].pid}) was ended by SIGKILL; another is started" in gateway.complained
    wait_until(lambda: not bench.select("SELECT 1 FROM attempts WHERE state = 'in_flight'"))
    assert differences(bench, provider) == []
    limits = {limit["dimension"]: limit for limit in bench.ask("limits")["limits"]}
    total = counted(provider)
    assert limits["micro_usd"]["used"] == 3 * total["input_tokens"] + 15 * total["output_tokens"]
    assert [limits["slots"][name] for name in ("used", "held")] == [0, 0]
    end(gateway)


def test_sigterm_drains_all_workers(bench):
    gateway, _ = serve(bench, '[[limit]]\nscope = "account:main"\nslots = 2', SLOW)
    with clients(gateway, 4) as several:
        for client in several:
            client.begin("POST", "/v1/messages", CALL)
        with clients(gateway, 1) as (asking,):
            wait_until(lambda: len(asking.ask("GET", "/api/v1/queue").json()["waiting"]) == 2)
        gateway.terminate()
        assert sorted(client.end().status for client in several) == [200, 200, 529, 529]
    assert gateway.ended() == 0, gateway.complained
    assert gateway.said.count("\n") == 2, "ready and draining are said once"
    assert "Traceback" not in gateway.complained


def test_what_waits_in_any_worker_is_told_by_each_and_woken_by_the_other(bench):
    gateway, _ = serve(bench, provider=SLOW)
    with clients(gateway, 6) as (running, *waiting, one, other):
        running.begin("POST", "/v1/messages", CALL)
        wait_until(lambda: bench.select("SELECT 1 FROM attempts WHERE state = 'in_flight'"))
        for client in waiting:
            client.begin("POST", "/v1/messages", CALL, {"x-headgate-agent": "waits"})
        wait_until(lambda: len(one.ask("GET", "/api/v1/queue").json()["waiting"]) == 3)
        told = [client.ask("GET", "/api/v1/queue").json() for client in (one, other)]
        for queue in told:
            assert [(lane["lane"], lane["waiting"]) for lane in queue["lanes"]] == [("account:main *", 3)]
            assert [call["agent"] for call in queue["waiting"]] == ["waits"] * 3
        assert told[0]["waiting"] == told[1]["waiting"]
        capacity = [
            client.ask("GET", "/api/v1/capacity?model=claude-sonnet-4-5").json()["capacity"] for client in (one, other)
        ]
        assert [row["agents"] for (row,) in capacity] == [0, 0]
        assert [client.end().status for client in (running, *waiting)] == [200] * 4
    end(gateway)


def test_a_reload_reaches_all_workers_or_none(bench):
    gateway, provider = serve(bench, WITH_ADMIN)
    with clients(gateway) as (one, other):
        bench.configure(provider.url, WITH_ADMIN.replace("slots = 1", "slots = 3"))
        told = one.ask("POST", "/api/v1/reload", headers=ADMIN)
        assert told.json() == {"changed": ["limit account:main: 3 calls at once instead of 1 call at once"]}
        assert [slots(client, ADMIN) for client in (one, other)] == [3, 3]
        bench.configure(provider.url, WITH_ADMIN.replace("slots = 1", "slots = 4"))
        gateway.hang_up()
        wait_until(lambda: "reloaded, 1 changes" in gateway.said)
        assert [slots(client, ADMIN) for client in (one, other)] == [4, 4]
        bench.configure(provider.url, WITH_ADMIN.replace("slots = 1", "slots = 0.5"))
        assert other.ask("POST", "/api/v1/reload", headers=ADMIN).status == 400
        gateway.hang_up()
        wait_until(lambda: "not reloaded, nothing has changed" in gateway.complained)
        assert [slots(client, ADMIN) for client in (one, other)] == [4, 4]
    workers(gateway)[1].kill()  # the file cannot be used now: what the others go by counts
    wait_until(lambda: "another is started" in gateway.complained and len(workers(gateway)) == 2)
    with clients(gateway) as both:
        assert [slots(client, ADMIN) for client in both] == [4, 4]
    end(gateway)


def test_a_worker_that_does_not_answer_is_named_and_nothing_is_changed_without_it(bench):
    gateway, provider = serve(bench)
    with clients(gateway) as (one, other):
        assert other.ask("GET", "/healthz").status == 200
        workers(gateway)[1].send_signal(signal.SIGSTOP)
        queue = one.ask("GET", "/api/v1/queue")
        assert queue.headers["x-headgate-unanswered"] == "worker 2"
        assert queue.json() == {"lanes": [], "waiting": [], "unanswered": ["worker 2"]}
        bench.configure(provider.url, ONE_SLOT.replace("1", "3"))
        refusal = one.ask("POST", "/api/v1/reload")
        assert (refusal.status, "worker 2 did not answer" in refusal.json()["error"]["message"]) == (529, True)
        workers(gateway)[1].send_signal(signal.SIGCONT)
        assert [slots(client) for client in (one, other)] == [1, 1]
        assert one.ask("POST", "/api/v1/reload").status == 200
        assert [slots(client) for client in (one, other)] == [3, 3]
    end(gateway)


def test_a_change_of_the_scheduler_reaches_all_workers_and_those_that_come(bench):
    gateway, _ = serve(bench)
    before = workers(gateway)
    with clients(gateway) as (one, other):
        told = one.ask("PUT", "/api/v1/scheduler", {"policy": "priority"})
        assert (told.status, told.json()["policy"]) == (200, "priority")
        assert other.ask("GET", "/api/v1/scheduler").json()["policy"] == "priority"
        assert other.ask("PUT", "/api/v1/scheduler", {"policy": "whim"}).status == 400
        assert other.ask("PUT", "/api/v1/scheduler", {"lanes": []}).status == 200
        assert one.ask("GET", "/api/v1/scheduler").json()["policy"] == "priority"
    before[1].kill()
    wait_until(lambda: len(workers(gateway)) == 2 and before[1] not in workers(gateway))
    with clients(gateway) as both:
        found = [client.ask("GET", "/api/v1/scheduler").json()["policy"] for client in both]
    assert found == ["priority", "priority"]
    end(gateway)


def test_a_key_that_is_ended_through_one_worker_is_refused_by_the_others_at_once(bench):
    gateway, _ = serve(bench, WITH_ADMIN)
    with clients(gateway) as (one, other):
        made = one.ask("POST", "/api/v1/keys", {"run": "nightly", "agents": ["a"]}, ADMIN).json()["keys"][0]
        bearing = {"x-api-key": made["key"]}
        for client in (one, other):  # which remember it for a second
            assert client.ask("GET", "/api/v1/queue", headers=bearing).status == 200
        assert one.ask("DELETE", f"/api/v1/keys/{made['id']}", headers=ADMIN).status == 200
        assert other.ask("GET", "/api/v1/queue", headers=bearing).status == 401
    end(gateway)


def test_events_and_metrics_are_those_of_all_workers(bench):
    gateway, _ = serve(bench)
    with clients(gateway, 3) as (follower, caller, asking):
        follower.open("/api/v1/events")
        assert follower.line() == b": headgate\n"
        assert caller.ask("POST", "/v1/messages", CALL, {"x-headgate-run": "r1"}).status == 200
        lines = [follower.line()]
        while b'"state":"done"' not in lines[-1]:
            lines.append(follower.line())
        assert [line for line in lines if line.startswith(b"event: ")] == [b"event: admitted\n", b"event: settled\n"]
        metrics = asking.ask("GET", "/metrics").body.decode()
    for worker in (1, 2):
        assert f'headgate_worker_answers{{worker="{worker}"}} 1.0' in metrics
        assert f'process_resident_memory_bytes{{worker="{worker}"}}' in metrics
        assert f'headgate_provider_refusals_total{{worker="{worker}"}} 0.0' in metrics
    assert metrics.count("headgate_requests_total{") == 1, "what stands in the ledger is told once"
    assert 'headgate_calls_in_flight{account="main"} 0.0' in metrics
    end(gateway)


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [("[server]\nlisten = '0.0.0.0:0'", 2, "needs an admin token"), ("slots = 1", 2, "headgate.toml")],
)
def test_what_one_process_refuses_several_refuse(bench, more, code, said):
    bench.configure("http://127.0.0.1:1", more)
    gateway = bench.start("serve", "--workers", "2")
    assert gateway.ended() == code
    assert said in gateway.complained
    assert gateway.complained.count("\n") == 1, gateway.complained


def test_workers_end_with_the_process_that_started_them(bench):
    gateway, _ = serve(bench)
    started = workers(gateway)
    assert send(gateway.url, "GET", "/healthz").status == 200
    psutil.Process(gateway.popen.pid).kill()
    gateway.ended()
    wait_until(lambda: not any(worker.is_running() for worker in started))
