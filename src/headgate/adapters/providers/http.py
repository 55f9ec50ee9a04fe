"""The upstream HTTP/1.1 client: pooled, verified, bounded in time and memory, and fast enough for the gateway's way.

One rule: bytes pass as they are. A caller writes `async with client.send(...) as reply:` and leaving the block ends the
call. No redirects, cookies or decompression, and nothing that costs is ever sent twice.
"""

import asyncio
import ssl
from collections.abc import Coroutine
from types import TracebackType

from headgate.adapters.providers.http_connection import Connection, Timeouts
from headgate.adapters.providers.http_errors import Broken, HttpError, NoAnswer, NotSent, Why
from headgate.adapters.providers.http_pool import HostPool, HostStats, HttpSettings
from headgate.adapters.providers.http_reply import Reply
from headgate.adapters.providers.http_request import CONNECTION_HEADERS, Origin, encode_head, parse_url
from headgate.ports import Headers, Passage, Upload

__all__ = [
    "CONNECTION_HEADERS",
    "Broken",
    "HostStats",
    "HttpClient",
    "HttpError",
    "HttpSettings",
    "NoAnswer",
    "NotSent",
    "Origin",
    "Reply",
    "Timeouts",
    "Why",
    "parse_url",
]

# Hosts come from the configuration; this only keeps a caller that invents them from filling the memory.
_MAX_UNUSED_HOSTS = 256
_DEFAULT_TIMEOUTS = Timeouts()
# RFC 9110, section 9.2.1: they change nothing, so that asking twice does no harm.
_SAFE_METHODS = frozenset({"GET", "HEAD"})


class HttpClient:
    """Sends requests over connections that it keeps; belongs to the event loop in which it is first used."""

    def __init__(self, settings: HttpSettings | None = None) -> None:
        self._settings = settings or HttpSettings()
        self._tls = self._settings.tls
        self._pools: dict[Origin, HostPool] = {}
        self._closed = False

    def send(
        self,
        method: str,
        origin: Origin,
        target: bytes,
        *,
        headers: Headers,
        body: bytes = b"",
        timeouts: Timeouts = _DEFAULT_TIMEOUTS,
        passage: Passage | None = None,
        upload: Upload | None = None,
    ) -> "_Call":
        """Prepare one call, to be used once, as `async with`; entering it sends and gives the `Reply` with its head.

        `headers` go as they are and may hold none of `CONNECTION_HEADERS`: `host` and `content-length` are added. Only
        a GET or HEAD is sent a second time, on a new connection, when one that was used before closes without a byte in
        answer: from outside, a server that closed just before a call cannot be told from one that took it and died.
        Leaving the block before the body has ended closes the connection there and then. `passage` is told whether a
        byte may have left, also to those who cancel the call while it waits for a connection. `upload` is sent in place
        of `body`, while it comes in; what it raises is raised on entering.

        Raises:
            NotSent: On entering. Nothing reached the server.
            NoAnswer: On entering. The request was sent, but no usable head came.
            Broken: On reading the body.
        """
        return _Call(self, method, origin, target, headers, upload or body, timeouts, passage or Passage())

    async def close(self) -> None:
        """Close all connections; calls on their way end with an error, later ones are not sent."""
        self._closed = True
        for pool in self._pools.values():
            await pool.close()

    def stats(self) -> dict[str, HostStats]:
        """Give the figures by origin, written as `https://host:port`."""
        return {f"{origin.scheme}://{origin.label}": pool.stats() for origin, pool in self._pools.items()}

    def pool(self, origin: Origin) -> HostPool:
        """Give the pool of a host; raises `NotSent` after `close`."""
        if self._closed:
            raise NotSent(origin.label, "closed", "this client was closed", elapsed_s=0.0)
        return self._pools.get(origin) or self._add_pool(origin)

    def _add_pool(self, origin: Origin) -> HostPool:
        if len(self._pools) >= _MAX_UNUSED_HOSTS:
            self._pools = {origin: pool for origin, pool in self._pools.items() if not pool.is_unused}
        if origin.scheme == "https" and self._tls is None:
            # Made when it is needed: reading the system's authorities takes 25 ms.
            self._tls = ssl.create_default_context()
            self._tls.set_alpn_protocols(["http/1.1"])
        try:
            pool = HostPool(origin, self._settings, self._tls if origin.scheme == "https" else None)
        except ValueError as error:
            raise NotSent(origin.label, "request", f"the environment variable {error}", elapsed_s=0.0) from error
        self._pools[origin] = pool
        return pool


class _Call:
    """One call's context manager; a class, because a generator's costs three times as much on the hot path."""

    __slots__ = (
        *("_body", "_client", "_headers", "_method", "_origin", "_passage", "_reply", "_target", "_timeouts"),
        "_upload",
    )

    def __init__(
        self,
        client: HttpClient,
        method: str,
        origin: Origin,
        target: bytes,
        headers: Headers,
        body: bytes | Upload,
        timeouts: Timeouts,
        passage: Passage,
    ) -> None:
        self._client = client
        self._method = method
        self._origin = origin
        self._target = target
        self._headers = headers
        self._body = body if isinstance(body, bytes) else b""
        self._upload = None if isinstance(body, bytes) else body
        self._timeouts = timeouts
        self._passage = passage
        passage.sent = False
        self._reply: Reply | None = None

    async def __aenter__(self) -> Reply:
        assert self._reply is None, "a call is made once"
        started_s = asyncio.get_running_loop().time()
        pool = self._client.pool(self._origin)
        proxy = pool.plain_proxy
        headers = self._headers if proxy is None else proxy.with_authorization(self._headers)
        try:
            body_bytes = len(self._body) if self._upload is None else self._upload.length
            head = encode_head(
                self._method, self._origin, self._target, headers, body_bytes, to_proxy=proxy is not None
            )
        except ValueError as error:
            raise NotSent(self._origin.label, "request", str(error), elapsed_s=0.0) from error
        # What is uploaded cannot be sent again, so that it goes by no connection that may have closed.
        is_upload = self._upload is not None
        idle = None if is_upload else pool.take_idle()
        connection = idle or await pool.acquire(self._timeouts, started_s, fresh=is_upload)
        reply = Reply(connection, started_s)
        try:
            await self._exchange(connection, reply, head)
        except NoAnswer:
            if not reply.stale or self._method not in _SAFE_METHODS:
                raise
            pool.stale_retries += 1
            connection = await pool.acquire(self._timeouts, started_s, fresh=True)
            reply = Reply(connection, started_s)
            await self._exchange(connection, reply, head)
        self._reply = reply
        return reply

    async def _exchange(self, connection: Connection, reply: Reply, head: bytes) -> None:
        self._passage.sent = True
        connection.start(reply, head, self._body, has_body=self._method != "HEAD", timeouts=self._timeouts)
        try:
            if self._upload is None:
                await reply.wait_for_head()
            else:
                await _answered(reply, connection.upload(aiter(self._upload), chunked=self._upload.length is None))
        except BaseException:
            reply.leave()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._reply is not None:
            self._reply.leave()


async def _answered(reply: Reply, uploading: Coroutine[None, None, None]) -> None:
    """Send a body while it comes in, and wait for the head; a server that answers before its end gets no more of it."""
    upload = asyncio.create_task(uploading, name="upload")
    head = asyncio.create_task(reply.wait_for_head(), name="head")
    try:
        await asyncio.wait((upload, head), return_when=asyncio.FIRST_COMPLETED)
        if not head.done():
            await upload
        await head
    finally:
        for each in (upload, head):
            each.cancel()
        await asyncio.gather(upload, head, return_exceptions=True)
