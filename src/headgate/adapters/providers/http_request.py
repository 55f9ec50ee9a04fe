"""How a request is written: where it goes, and the bytes of its head.

One rule: nothing that a caller passes in can start a second header or a second request.
It changes no header and adds only those that belong to the connection.
"""

import re
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import urlsplit

from headgate.ports import Headers

__all__ = ["CONNECTION_HEADERS", "Origin", "encode_head", "parse_url"]

CONNECTION_HEADERS = frozenset({
    b"connection", b"content-length", b"expect", b"host", b"keep-alive", b"proxy-connection", b"te", b"trailer",
    b"transfer-encoding", b"upgrade",
})  # fmt: skip
"""Names (lower case) that speak of one connection, not of the message: who forwards a request leaves them out."""

_DEFAULT_PORTS = {"http": 80, "https": 443}
# RFC 9110, section 5.6.2.
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_TARGET = re.compile(rb"/[!-~]*")
_METHODS_WITHOUT_BODY = frozenset({"GET", "HEAD", "DELETE", "OPTIONS"})


class Origin(NamedTuple):
    """A server: scheme, host (an IPv6 address without brackets) and port."""

    scheme: str
    host: str
    port: int

    @property
    def label(self) -> str:
        """`host:port`, as errors and figures name it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def authority(self) -> bytes:
        """The value of the `host` header: without the port where it is the scheme's own."""
        label = self.label
        return (label.rpartition(":")[0] if self.port == _DEFAULT_PORTS[self.scheme] else label).encode("ascii")


def parse_url(url: str) -> tuple[Origin, bytes]:
    """Split an http or https URL into its origin and its target (path and query).

    Raises:
        ValueError: It is no such URL, or it names a user: credentials belong in headers.
    """
    parts = urlsplit(url)
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname or parts.username is not None or parts.fragment:
        # The URL itself is not shown: it may hold a password.
        raise ValueError("expected a URL such as https://host[:port]/path, without a user and without a #fragment")
    host = parts.hostname if ":" in parts.hostname else parts.hostname.encode("idna").decode("ascii")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Origin(parts.scheme, host, parts.port or _DEFAULT_PORTS[parts.scheme]), target.encode("ascii")


def encode_head(
    method: str,
    origin: Origin,
    target: bytes,
    headers: Headers,
    body_bytes: int | None,
    *,
    to_proxy: bool = False,
) -> bytes:
    """Give the bytes of a request's head: `headers` as they are, after `host` and before what tells the body's length.

    Without `body_bytes` the body is sent in chunks. What goes `to_proxy` names its host in the target (RFC 9112,
    section 3.2.2).

    Raises:
        ValueError: A header or the target cannot be sent; names the header, never its value.
    """
    parts = [_start(method, origin, target, to_proxy)]
    for name, value in headers:
        parts += (_field(name), value, b"\r\n")
    if body_bytes is None:
        parts.append(b"transfer-encoding: chunked\r\n\r\n")
        lines = len(headers) + 4
    elif body_bytes or method not in _METHODS_WITHOUT_BODY:
        parts.append(b"content-length: %d\r\n\r\n" % body_bytes)
        lines = len(headers) + 4
    else:
        parts.append(b"\r\n")
        lines = len(headers) + 3
    head = b"".join(parts)
    # Three scans of the whole head cost less than one look at each value.
    if head.count(b"\n") != lines or head.count(b"\r") != lines or b"\0" in head:
        bad = [name for name, value in headers if any(byte in value for byte in b"\r\n\0")]
        raise ValueError(f"the value of header {bad[0].decode()} holds a line break or a NUL")
    return head


# Both caches are bounded; names and targets recur, so that each is checked once and not once a call.
@lru_cache(maxsize=1024)
def _start(method: str, origin: Origin, target: bytes, to_proxy: bool) -> bytes:  # noqa: FBT001 - a cache's key
    token = method.encode()
    if not _TOKEN.fullmatch(token):
        raise ValueError(f"{method!r} is no HTTP method")
    if not _TARGET.fullmatch(target):
        raise ValueError(f"{target!r} is no request target: expected /path?query of visible ASCII characters")
    if to_proxy:
        target = b"%b://%b%b" % (origin.scheme.encode(), origin.authority, target)
    return b"%b %b HTTP/1.1\r\nhost: %b\r\n" % (token, target, origin.authority)


@lru_cache(maxsize=1024)
def _field(name: bytes) -> bytes:
    if not _TOKEN.fullmatch(name):
        raise ValueError(f"{name!r} is no header name")
    if name.lower() in CONNECTION_HEADERS:
        raise ValueError(f"header {name.decode()} belongs to the connection: leave it out (see CONNECTION_HEADERS)")
    return name + b": "
