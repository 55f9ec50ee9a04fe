"""Dialing: from a host's name to a connected socket, each step within its own time.

One rule: whatever it opened and does not give is closed. A host's addresses are tried beside each other, so that one
that does not answer costs a quarter of a second and not the whole time (RFC 8305, "Happy Eyeballs").
"""

import asyncio
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from ipaddress import ip_address
from typing import Any

from headgate.adapters.providers.http_errors import Why
from headgate.adapters.providers.http_proxies import Proxy

__all__ = ["DialError", "dial"]

_NEXT_ADDRESS_S = 0.25
"""After so long the next address is tried beside the ones before (RFC 8305, section 8)."""

_MOST_ADDRESSES = 8
_PROXY_HEAD_LIMIT_BYTES = 16 * 1024
_PROXY_OK = 200

_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}

_Address = tuple[int, int, int, str, Any]


class DialError(Exception):
    """There is no connection: at which step it failed, and what happened, without a name."""

    def __init__(self, why: Why, what: str) -> None:
        super().__init__(what)
        self.why = why
        self.what = what


async def dial(
    host: str, port: int, proxy: Proxy | None, *, tunnel: bool, dns_s: float, connect_s: float
) -> socket.socket:
    """Give a socket that is connected to a host, or to its proxy; through a tunnel of the proxy's with `tunnel`.

    Raises:
        DialError: there is none.
    """
    asked = (host, port) if proxy is None else (proxy.host, proxy.port)
    by = "" if proxy is None else f"proxy {proxy.label}: "
    addresses = await _look_up(*asked, dns_s=dns_s, by=by)
    try:
        async with asyncio.timeout(connect_s):
            connected = await _first_of(addresses, by)
            if proxy is not None and tunnel:
                await _closing_unless_done(connected, lambda: _tunnel(connected, host, port, proxy))
    except TimeoutError as error:
        raise DialError("timeout", f"{by}no connection within {connect_s:g} s") from error
    return connected


async def _look_up(host: str, port: int, *, dns_s: float, by: str) -> list[_Address]:
    loop = asyncio.get_running_loop()
    with suppress(ValueError):  # an address needs no thread of the resolver's
        version = ip_address(host).version
        return [(_FAMILIES[version], socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port))]
    try:
        async with asyncio.timeout(dns_s):
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    except TimeoutError as error:
        raise DialError("dns", f"{by}the name was not looked up within {dns_s:g} s") from error
    except socket.gaierror as error:
        raise DialError("dns", f"{by}the name has no address: {error.strerror}") from error
    except UnicodeError as error:  # a part of it is empty, or longer than 63 characters
        raise DialError("dns", f"{by}it is no name that could have an address") from error
    return list(_alternating(found))[:_MOST_ADDRESSES]


def _alternating(addresses: Sequence[_Address]) -> list[_Address]:
    """Give the two families of addresses in turn, the one that the system prefers first (RFC 8305, section 4)."""
    first = [each for each in addresses if each[0] == addresses[0][0]]
    other = [each for each in addresses if each[0] != addresses[0][0]]
    mixed = [each for pair in zip(first, other, strict=False) for each in pair]
    return mixed + first[len(other) :] + other[len(first) :]


async def _first_of(addresses: list[_Address], by: str) -> socket.socket:
    """Connect to the first address that answers."""
    if len(addresses) == 1:
        return await _connect(addresses[0], by)
    left = list(addresses)
    trying: set[asyncio.Task[socket.socket]] = set()
    failed: DialError | None = None
    try:
        while left or trying:
            if left:
                trying.add(asyncio.create_task(_connect(left.pop(0), by)))
            done, trying = await asyncio.wait(
                trying, timeout=_NEXT_ADDRESS_S if left else None, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                error = task.exception()
                if error is None:
                    trying |= done - {task}
                    return task.result()
                if not isinstance(error, DialError):
                    raise error
                failed = failed or error
    finally:
        await _give_up(trying)
    assert failed is not None, "each address failed"
    raise failed


async def _give_up(trying: set[asyncio.Task[socket.socket]]) -> None:
    for task in trying:
        task.cancel()
    for ended in await asyncio.gather(*trying, return_exceptions=True):
        if isinstance(ended, socket.socket):
            ended.close()


async def _connect(address: _Address, by: str) -> socket.socket:
    family, kind, protocol, _name, at = address
    try:
        connecting = socket.socket(family, kind, protocol)
    except OSError as error:
        raise DialError("connect", f"{by}no connection: {error.strerror or error}") from error
    connecting.setblocking(False)  # noqa: FBT003 - its only parameter, by position

    async def connect() -> None:
        try:
            await asyncio.get_running_loop().sock_connect(connecting, at)
        except OSError as error:
            # asyncio's own words name the address, and no reason.
            what = os.strerror(error.errno) if error.errno else str(error)
            raise DialError("connect", f"{by}no connection: {what}") from error

    await _closing_unless_done(connecting, connect)
    return connecting


async def _closing_unless_done(opened: socket.socket, step: Callable[[], Any]) -> None:
    try:
        await step()
    except BaseException:
        opened.close()
        raise


async def _tunnel(connected: socket.socket, host: str, port: int, proxy: Proxy) -> None:
    """Ask a proxy for a tunnel (RFC 9110, section 9.3.6)."""
    loop = asyncio.get_running_loop()
    authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    lines = [f"CONNECT {authority} HTTP/1.1".encode(), b"host: " + authority.encode()]
    if proxy.authorization is not None:
        lines.append(b"proxy-authorization: " + proxy.authorization)
    await loop.sock_sendall(connected, b"\r\n".join([*lines, b"", b""]))
    head = b""
    # Byte by byte: what follows the head is the host's, and belongs to whoever reads the socket then.
    while not head.endswith(b"\r\n\r\n"):
        piece = await loop.sock_recv(connected, 1)
        head += piece
        if not piece or len(head) > _PROXY_HEAD_LIMIT_BYTES:
            raise DialError("connect", f"proxy {proxy.label}: it gave no answer that can be read")
    status = head.split(b"\r\n", 1)[0].split(b" ")
    code = int(status[1]) if len(status) > 1 and status[1].isdigit() else 0
    if code // 100 != _PROXY_OK // 100:
        raise DialError("connect", f"proxy {proxy.label}: it refused a tunnel with status {code}")
