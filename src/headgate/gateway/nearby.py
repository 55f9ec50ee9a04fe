"""Nearby: whether a call without a key comes from a program on this machine, as far as its headers can tell.

One rule: where nobody needs a key, no web page may spend the owner's. Pages reach a loopback address too: directly,
with their own `origin`, or by a name of theirs that they let point here (DNS rebinding), which stands in `host`.
"""

import ipaddress
from urllib.parse import urlsplit

from headgate.gateway.exchange import HttpExchange
from headgate.runtime.keys import NotAllowedError

_MOST_SHOWN_CHARS = 100


def check_nearby(exchange: HttpExchange) -> None:
    """Return if the request names this machine, and no page from elsewhere sent it.

    Raises:
        NotAllowedError: it does not. What sends neither header is no browser, and passes.
    """
    host, origin = exchange.header(b"host"), exchange.header(b"origin")
    if host is not None and not _is_loopback(f"//{host}"):
        raise NotAllowedError(
            f"host: {host[:_MOST_SHOWN_CHARS]!r} is not this machine; without a key this gateway answers only to "
            "127.0.0.1, localhost and [::1]; use one of these in the base URL, or a key from `headgate keys create`"
        )
    if origin is not None and not _is_loopback(origin):
        raise NotAllowedError(
            f"origin: {origin[:_MOST_SHOWN_CHARS]!r}: a page from elsewhere may not call this gateway without a key; "
            "make one for it with `headgate keys create`"
        )


def _is_loopback(url: str) -> bool:
    try:
        name = urlsplit(url).hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
