"""A gateway elsewhere that comes and goes: what waits for it, for how long, and what is said."""

import asyncio
import json

import pytest

from headgate.adapters.providers.http import NotSent
from headgate.cli.other_gateway import LOOK_AGAIN_S, PATIENCE_S, OtherGateway
from headgate.cli.reporting import FleetWatch
from headgate.cli.run_gateway import LentKey
from headgate.core.errors import CallerError, ProviderError
from headgate.core.jobs import Job
from headgate.runtime.fleet import FleetEnd
from headgate.testing import virtual_time

JOB = Job("r1", 0, "north", "{}", state="done", attempt=1)
LENT = {"under": "ci", "keys": [{"id": "0a", "key": "hg-0a-1"}]}
SHAPES = {
    "/api/v1/keys": LENT,
    "/api/v1/limits": {"limits": []},
    "/api/v1/queue": {"waiting": [{"run": "r1", "agent": "north"}, {"run": "other", "agent": "x"}]},
    "/api/v1/usage": {"groups": []},
}


class Reply:
    def __init__(self, status: int, body: bytes) -> None:
        self.status = status
        self.body = body

    async def read(self, most_bytes: int) -> bytes:
        assert len(self.body) < most_bytes
        return self.body


class Gateway:
    """Stands in for the HTTP client: `answers` are statuses, or None where nobody listens; the last one stays."""

    def __init__(self, *answers: int | None) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, str]] = []

    def send(self, method, origin, target, *, headers, body, timeouts):
        self.asked.append((method, target.decode().partition("?")[0]))
        return self

    async def __aenter__(self) -> Reply:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer is None:
            raise NotSent("gateway:1", "connect", "connection refused", elapsed_s=0.0)
        if answer >= 400:
            return Reply(answer, b'{"error": {"message": "not now"}}' if answer == 503 else b"<html>")
        return Reply(answer, json.dumps(SHAPES[self.asked[-1][1]]).encode())

    async def __aexit__(self, *_: object) -> None:
        pass


def at(client: Gateway) -> OtherGateway:
    return OtherGateway(client, "http://gateway:1", "r1", "hg-k-1")


def timed(scene) -> float:
    async def main() -> float:
        begun_s = asyncio.get_running_loop().time()
        await scene()
        return asyncio.get_running_loop().time() - begun_s

    return virtual_time.run(main())


def test_an_attempt_waits_for_a_gateway_that_starts_anew():
    client = Gateway(None, 503, None, 201)

    async def scene() -> None:
        assert (await at(client).lend_key(JOB)).secret == "hg-0a-1"

    assert 0 < timed(scene) < PATIENCE_S
    assert len(client.asked) == 4


@pytest.mark.parametrize(("answer", "error"), [(None, ProviderError), (503, CallerError)])
def test_it_waits_for_so_long_and_no_longer(answer, error):
    async def scene() -> None:
        with pytest.raises(error, match="gateway:1"):
            await at(Gateway(answer)).lend_key(JOB)

    assert PATIENCE_S / 2 < timed(scene) <= PATIENCE_S


def test_a_refusal_is_told_at_once():
    async def scene() -> None:
        with pytest.raises(CallerError, match="answered 403"):
            await at(Gateway(403)).lend_key(JOB)

    assert timed(scene) == 0


def test_a_key_that_cannot_be_ended_holds_up_nothing(caplog):
    async def scene() -> None:
        await at(Gateway(None)).end_key(LentKey("0a", "hg-0a-1"))

    assert timed(scene) == 0
    assert "key 0a was not ended and will expire: gateway:1" in caplog.text
    assert "hg-0a-1" not in caplog.text


def test_whoever_watches_asks_seldom_and_sees_the_end():
    client = Gateway(200)

    async def scene() -> None:
        gateway = at(client)
        for _ in range(13):
            now = await gateway.now()
            await asyncio.sleep(LOOK_AGAIN_S / 4)
        assert [row["agent"] for row in now.waiting] == ["north"]
        assert len(client.asked) == 4 * 3
        gateway.look_anew()
        await gateway.now()
        assert len(client.asked) == 5 * 3

    timed(scene)


def test_the_report_of_a_run_whose_gateway_has_gone_has_its_jobs():
    class Jobs:
        async def jobs(self, run: str) -> list[Job]:
            return [JOB]

    async def scene() -> None:
        watch = FleetWatch(at(Gateway(None)), Jobs(), "r1", None)
        report = await watch.report(FleetEnd("finished", 0, 0, 1, 0), "agents")
        assert ([job.name for job in report.jobs], list(report.calls)) == (["north"], [])
        assert "gateway:1: connection refused" in watch.missing

    timed(scene)


@pytest.mark.parametrize("url", ["gateway", "ftp://gateway", "http://user:pw@gateway"])
def test_what_is_no_address_is_told(url):
    with pytest.raises(CallerError, match="--gateway: expected a URL") as raised:
        OtherGateway(Gateway(200), url, "r1", None)
    assert "pw" not in str(raised.value)
