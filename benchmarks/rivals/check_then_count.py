"""Row B4's baseline, a gateway with one rule: let a call in while less than the limit is used, count it when it ends.

That is how LiteLLM's proxy keeps budgets and token limits (its issues #18730 and #40002, wire.md section 5): what is on
its way is in no figure, so all calls that come before the first has ended are let in. Several processes share one file.
Calls at once are counted in each process by itself, as its issue #40291 describes. Nothing is retried or queued.

    python -m benchmarks.rivals.check_then_count PROVIDER FILE MICRO_USD TOKENS SLOTS
"""

import asyncio
import json
import signal
import sqlite3
import sys
from contextlib import suppress
from pathlib import Path

from headgate.adapters.providers.http import HttpClient, HttpError, parse_url
from headgate.adapters.server import Message, Receive, Send, run, serve
from headgate.testing.scripted import FlatPrices

_PRICES = FlatPrices()
_MOST_BODY_BYTES = 1024 * 1024


class CheckThenCount:
    """An ASGI application for `POST /v1/messages`."""

    def __init__(self, provider: str, file: Path, micro_usd: int, tokens: int, slots: int) -> None:
        self._origin, _ = parse_url(provider)
        self._client = HttpClient()
        self._counts = sqlite3.connect(file, timeout=10, isolation_level=None)
        self._counts.execute("CREATE TABLE IF NOT EXISTS spent (micro_usd INTEGER, tokens INTEGER)")
        self._micro_usd, self._tokens, self._slots = micro_usd, tokens, slots
        self._running = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        message = await receive()
        body = message["body"]
        while message.get("more_body"):
            message = await receive()
            body += message["body"]
        micro_usd, tokens = self._counts.execute("SELECT total(micro_usd), total(tokens) FROM spent").fetchone()
        if micro_usd >= self._micro_usd or tokens >= self._tokens or self._running >= self._slots:
            await self._answer(send, 429, b'{"type":"error","error":{"type":"rate_limit_error","message":"spent"}}')
            return
        body = body.replace(b'"stream":true', b'"stream":false')  # it counts plain answers only
        self._running += 1
        try:
            headers = [(name, value) for name, value in scope["headers"] if name in (b"content-type", b"x-api-key")]
            async with self._client.send("POST", self._origin, b"/v1/messages", headers=headers, body=body) as reply:
                status, answer = reply.status, await reply.read(_MOST_BODY_BYTES)
        except HttpError as error:
            status, answer = 502, json.dumps({"error": str(error)}).encode()
        finally:
            self._running -= 1
        self._count(answer)
        with suppress(OSError):  # whoever has left meanwhile is counted all the same
            await self._answer(send, status, answer)

    def _count(self, answer: bytes) -> None:
        usage = json.loads(answer).get("usage")
        if usage is not None:
            told = usage["input_tokens"], usage["output_tokens"]
            micro_usd = told[0] * _PRICES.input_micro_usd + told[1] * _PRICES.output_micro_usd
            self._counts.execute("INSERT INTO spent VALUES (?, ?)", (micro_usd / 1_000_000, sum(told)))

    async def _answer(self, send: Send, status: int, body: bytes) -> None:
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


async def main() -> None:
    provider, file, *bounds = sys.argv[1:]
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    app = CheckThenCount(provider, Path(file), *map(int, bounds))
    async with serve(app, "127.0.0.1", 0, drain_s=1.0) as server:
        print(f"check then count: serving http://127.0.0.1:{server.address[1]}", flush=True)
        await stopped.wait()


if __name__ == "__main__":
    run(main())
