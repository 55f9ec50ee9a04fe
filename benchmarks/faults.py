"""Row FAULTS: what breaks, how often it was made to break, and what was lost.

    python -m benchmarks FAULTS [--quick]

A gateway runs as users run it, over a simulated provider in this process, whose books are the truth. Each fault is put
in while calls and streams are on their way; then the ledger is held against the books: every call that reached the
provider has its row, nothing is held any more, and files and memory are back. There is no rival: the target is 0.
`tokens` are the ledger's as a part of the provider's: more where a call was cut off before it told them, and what was
thought of it counts.
"""

import asyncio
import logging
import os
import resource
import signal
import sqlite3
import sys
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import psutil

from benchmarks.__main__ import Options, Result
from headgate.adapters.providers.http import HttpClient, HttpSettings, Origin, Timeouts, parse_url
from headgate.adapters.server import serve
from headgate.core.errors import ProviderError
from headgate.testing.provider import Latency, ProviderSettings, SimulatedProvider

TITLE = "what breaks on the way of a call, how often it was made to break, and what was lost"

CALLS, STREAMS = 200, 500
FILES_CLOSING = 2
"""Connections that are about to be closed when a gateway is looked at."""
QUICK = 0.2
MANY = 1_000_000_000

_CONFIG = """
[server]
listen = "127.0.0.1:0"
drain_s = 20
[store]
url = "sqlite:///headgate.sqlite"
[[account]]
name = "main"
provider = "anthropic"
base_url = "{url}"
api_key = "env:BENCH_KEY"
models = ["*"]
reconcile = true
[[limit]]
scope = "account:main"
requests_per_minute = {many}
input_tokens_per_minute = {many}
output_tokens_per_minute = {many}
slots = 10000
usd_per_day = 100000
[[price]]
model = "*"
input = 1
output = 1
context_window = 200000
max_output_tokens = 8000
[retries]
attempts = 1
[timeouts]
connect_s = 2
first_byte_s = 3
idle_s = 1
"""
_HEADERS = [(b"content-type", b"application/json"), (b"x-api-key", b"k"), (b"anthropic-version", b"2023-06-01")]
_ERROR_TYPES = {"api_error", "overloaded_error", "rate_limit_error", "timeout_error", "invalid_request_error"}
_END_WITHIN_S = 30.0
_QUICKLY = Timeouts(connect_s=2.0, first_byte_s=10.0)


@dataclass
class Gateway:
    """`headgate serve` as a process, and where it is."""

    process: asyncio.subprocess.Process
    origin: Origin


@dataclass
class Scene:
    """One fault's stage."""

    folder: Path
    provider: SimulatedProvider
    http: HttpClient
    gateway: Gateway
    scale: float
    ends: Counter[str] = field(default_factory=Counter)

    async def warm(self) -> None:
        """Let a process open what it has open once it works."""
        ends, self.ends = self.ends, Counter()
        await self.calls(50, seconds=0.1)
        self.ends = ends

    async def calls(self, count: int, fault: str = "", *, stream: bool = False, seconds: float = 0.0) -> None:
        """Let so many calls come at once, and note how each ended for its client."""
        count = max(5, round(count * self.scale))
        self.ends.update(await asyncio.gather(*[self._call(fault, stream, seconds) for _ in range(count)]))

    async def _call(self, fault: str, stream: bool, seconds: float) -> str:  # noqa: FBT001 - as `calls` was asked
        tokens = 20
        body = {"model": "claude-sonnet-4-5", "max_tokens": 64, "stream": stream}
        body |= {"messages": [{"role": "user", "content": "x" * 200}]}
        headers = [*_HEADERS, (b"x-provider-output-tokens", b"%d" % tokens)]
        if fault:
            headers.append((b"x-provider-fault", fault.encode()))
        if seconds:
            headers[-1:] = [(b"x-provider-output-tokens", b"%d" % round(20 * seconds))]
            body["max_tokens"] = round(20 * seconds)
        told = b""
        try:
            sending = self.http.send(
                "POST", self.gateway.origin, b"/v1/messages", headers=headers, body=msgspec.json.encode(body)
            )
            async with sending as reply:
                async for piece in reply:
                    told += piece
        except ProviderError:
            return "cut off"
        return _how_it_ended(reply.status, told, stream=stream)


def _how_it_ended(status: int, told: bytes, *, stream: bool) -> str:
    """Say whether a client of the vendor's could understand what it got."""
    try:
        if status != 200 or not stream:
            shape = msgspec.json.decode(told)
            if shape.get("type") == "message":
                return "answered"
            return "error" if shape["error"]["type"] in _ERROR_TYPES and shape["type"] == "error" else "not understood"
        events = [msgspec.json.decode(part.partition(b"data: ")[2]) for part in told.split(b"\n\n") if part]
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError):
        return "not understood"
    last = events[-1] if events else {}
    if last.get("type") == "message_stop":
        return "answered"
    return "error" if last.get("type") == "error" and last["error"]["type"] in _ERROR_TYPES else "not understood"


# --- the faults


async def _named(scene: Scene, fault: str) -> None:
    await scene.calls(CALLS, fault)
    await scene.calls(CALLS, fault, stream=True)


async def _clients_leave(scene: Scene) -> None:
    calls = asyncio.create_task(scene.calls(STREAMS, stream=True, seconds=5))
    await _until(lambda: _running(scene) >= 5)
    calls.cancel()
    await asyncio.gather(calls, return_exceptions=True)
    scene.ends["left"] += max(5, round(STREAMS * scene.scale))


async def _locked(scene: Scene) -> None:
    calls = asyncio.create_task(scene.calls(CALLS))
    with sqlite3.connect(scene.folder / "headgate.sqlite", isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        await asyncio.sleep(1.5)
        other.execute("ROLLBACK")
    other.close()
    await calls


async def _full(scene: Scene) -> None:
    process = psutil.Process(scene.gateway.process.pid)
    size = max(path.stat().st_size for path in scene.folder.glob("headgate.sqlite*"))
    process.rlimit(psutil.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    await scene.calls(CALLS)
    process.rlimit(psutil.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    await asyncio.sleep(0.5)
    await scene.calls(CALLS)


async def _ended(scene: Scene, how: signal.Signals) -> None:
    streams = asyncio.create_task(scene.calls(STREAMS, stream=True, seconds=4))
    await _until(lambda: _running(scene) >= round(STREAMS * scene.scale) - 1)
    scene.gateway.process.send_signal(how)
    await scene.gateway.process.wait()
    await streams
    scene.gateway = await _serve(scene.folder)
    await scene.warm()


async def _gone(scene: Scene) -> None:
    """Let the provider's port be one that nobody listens on."""
    text = (scene.folder / "headgate.toml").read_text()
    (scene.folder / "headgate.toml").write_text(text.replace(_url_of(text), "http://127.0.0.1:1"))
    await _end(scene.gateway)
    scene.gateway = await _serve(scene.folder)
    await scene.calls(CALLS)
    await scene.calls(CALLS, stream=True)


def _url_of(text: str) -> str:
    return text.partition('base_url = "')[2].partition('"')[0]


FAULTS: dict[str, Callable[[Scene], Awaitable[None]]] = {
    "provider: nobody listens": _gone,
    "provider: status 500": lambda scene: _named(scene, "500"),
    "provider: status 529": lambda scene: _named(scene, "529"),
    "provider: closes before its answer": lambda scene: _named(scene, "disconnect-before"),
    "provider: closes in mid-answer": lambda scene: _named(scene, "disconnect-mid"),
    "provider: closes within an event": lambda scene: _named(scene, "half-event"),
    "provider: error in mid-stream": lambda scene: _named(scene, "error-mid"),
    "provider: error behind a 200": lambda scene: _named(scene, "error-200"),
    "provider: falls silent": lambda scene: _named(scene, "stall"),
    "provider: an event that is no JSON": lambda scene: _named(scene, "malformed-event"),
    "provider: tells no usage": lambda scene: _named(scene, "missing-usage"),
    "provider: tells nonsense of usage": lambda scene: _named(scene, "wrong-usage"),
    "provider: its clock is wrong": lambda scene: _named(scene, "skew"),
    "clients leave 500 streams": _clients_leave,
    "store: locked for 1.5 s": _locked,
    "store: disk full": _full,
    "gateway: SIGTERM under 500 streams": lambda scene: _ended(scene, signal.SIGTERM),
    "gateway: kill -9 under 500 streams": lambda scene: _ended(scene, signal.SIGKILL),
}

PASSED_AS_IT_WAS = {"provider: an event that is no JSON"}
"""What the provider wrote goes to the client as it is: here, what no client understands."""


def run(options: Options) -> Result:
    """Inject every fault, and compare the books after each."""
    options.say(
        f"    {'fault':38}{'calls':>7}{'answered':>10}{'errors':>8}{'cut off':>9}{'not understood':>16}"
        f"{'lost rows':>11}{'held':>6}{'files':>7}{'MiB':>6}{'tokens':>10}"
    )
    found = {}
    # asyncio warns of each piece that the provider sends to a gateway that was killed.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    chosen = list(FAULTS.items())[:: 2 if options.quick else 1]
    for name, inject in chosen:
        found[name] = asyncio.run(_scene(name, inject, QUICK if options.quick else 1.0, options))
    lost = {
        "rows lost": sum(each["lost_rows"] for each in found.values()),
        "holds leaked": sum(each["held"] for each in found.values()),
        "answers not understood": sum(each["not understood"] for each in found.values()),
        "files leaked": sum(max(0, each["files"] - FILES_CLOSING) for each in found.values()),
    }
    calls = sum(each["calls"] for each in found.values())
    return Result(
        {**lost, "calls": calls},
        None,
        dict.fromkeys(lost, 0),
        not any(lost.values()),
        f"{len(chosen)} faults; a call is cut off only where its gateway was killed",
    )


async def _scene(
    name: str, inject: Callable[[Scene], Awaitable[None]], scale: float, options: Options
) -> dict[str, Any]:
    settings = ProviderSettings(latency=Latency(0.01, 20.0, 0.0), deltas_per_stream=40)
    provider = SimulatedProvider(settings)
    with tempfile.TemporaryDirectory(prefix="headgate-faults-") as place:
        folder = Path(place)
        async with serve(provider, "127.0.0.1", 0, drain_s=0.1) as upstream:
            url = f"http://127.0.0.1:{upstream.address[1]}"
            (folder / "headgate.toml").write_text(_CONFIG.format(url=url, many=MANY))
            http = HttpClient(HttpSettings(connections_per_host=2_000, first_connections=2_000))
            scene = Scene(folder, provider, http, await _serve(folder), scale)
            try:
                await scene.warm()
                before = await _figures(scene)
                await inject(scene)
                await _settled(scene)
                told = await _compare(name, scene, before)
            finally:
                await http.close()
                await _end(scene.gateway)
    ends = [scene.ends["answered"], scene.ends["error"], scene.ends["cut off"] + scene.ends["left"]]
    options.say(
        f"    {name:38}{told['calls']:7,}{ends[0]:10,}{ends[1]:8,}{ends[2]:9,}{scene.ends['not understood']:16,}"
        f"{told['lost_rows']:11,}{told['held']:6,}{told['files']:+7,}{told['memory_mib']:+6.0f}{told['tokens']:10.2%}"
    )
    return told


async def _settled(scene: Scene) -> None:
    """Wait until the gateway says that nothing is on its way, and nothing is in the ledger that has no end."""
    for _ in range(300):
        status = await _ask(scene, "/api/v1/status")
        if status is not None and status["calls"]["in_flight"] == 0 and not _rows(scene, "state = 'in_flight'"):
            return
        await asyncio.sleep(0.1)


async def _compare(name: str, scene: Scene, before: tuple[int, float]) -> dict[str, Any]:
    """Hold the ledger against the provider's books, and what is held against nothing."""
    received = scene.provider.usage()["total"]["requests_received"]
    limits = await _ask(scene, "/api/v1/limits")
    assert limits is not None, "the gateway answers"
    files, memory_mib = await _figures(scene)
    for _ in range(30):  # a connection that was closed just now is gone with the loop's next turns
        if files <= before[0]:
            break
        await asyncio.sleep(0.1)
        files, memory_mib = await _figures(scene)
    return {
        "calls": sum(scene.ends.values()),
        "not understood": 0 if name in PASSED_AS_IT_WAS else scene.ends["not understood"],
        "tokens": _tokens(scene),
        "lost_rows": max(0, received - _rows(scene, "sent")) + _rows(scene, "state = 'in_flight'"),
        "held": sum(
            each["used"] if each["dimension"] == "slots" else each["held"] + (each.get("pending") or 0)
            for each in limits["limits"]
        ),
        "files": files - before[0],
        "memory_mib": memory_mib - before[1],
    }


async def _figures(scene: Scene) -> tuple[int, float]:
    """Give the gateway's open files without connections that may be used again, and its memory in MiB."""
    status = await _ask(scene, "/api/v1/status")
    assert status is not None, "the gateway answers"
    kept = sum(each["open"] for each in status["connections"]) + sum(each.open for each in scene.http.stats().values())
    process = psutil.Process(scene.gateway.process.pid)
    return process.num_fds() - kept, process.memory_info().rss / 2**20


def _rows(scene: Scene, which: str) -> int:
    with sqlite3.connect(scene.folder / "headgate.sqlite") as store:
        count = store.execute(f"SELECT count(*) FROM attempts WHERE {which}").fetchone()[0]
    store.close()
    return int(count)


def _tokens(scene: Scene) -> float:
    """Give the ledger's tokens as a part of those that the provider counted."""
    with sqlite3.connect(scene.folder / "headgate.sqlite") as store:
        ours = store.execute("SELECT coalesce(sum(input_tokens + output_tokens), 0) FROM attempts").fetchone()[0]
    store.close()
    truth = scene.provider.usage()["total"]
    return float(ours / max(1, truth["input_tokens"] + truth["output_tokens"]))


def _running(scene: Scene) -> int:
    return int(scene.provider.usage()["total"]["requests_running"])


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(_END_WITHIN_S):
        while not condition():  # noqa: ASYNC110 - it is another process that has to come so far
            await asyncio.sleep(0.02)


async def _ask(scene: Scene, path: str) -> Any:
    try:
        async with scene.http.send("GET", scene.gateway.origin, path.encode(), headers=[], timeouts=_QUICKLY) as reply:
            return msgspec.json.decode(await reply.read(1 << 24)) if reply.status == 200 else None
    except ProviderError:
        return None


async def _serve(folder: Path) -> Gateway:
    command = [sys.executable, "-m", "headgate", "serve", "--config", str(folder / "headgate.toml")]
    with (folder / "complained").open("ab") as complained:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdout=asyncio.subprocess.PIPE,
            stderr=complained,
            env={**os.environ, "BENCH_KEY": "sk-bench"},
        )
    assert process.stdout is not None
    async with asyncio.timeout(_END_WITHIN_S):
        line = (await process.stdout.readline()).decode()
    if "http://" not in line:
        raise RuntimeError(f"headgate serve said {line!r}: {(folder / 'complained').read_text()[-2000:]}")
    origin, _ = parse_url("http://" + line.partition("http://")[2].split()[0].rstrip(".,;"))
    return Gateway(process, origin)


async def _end(gateway: Gateway) -> None:
    if gateway.process.returncode is None:
        gateway.process.terminate()
        try:
            async with asyncio.timeout(_END_WITHIN_S):
                await gateway.process.wait()
        except TimeoutError:
            gateway.process.kill()
            await gateway.process.wait()
