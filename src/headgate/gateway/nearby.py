"""Nearby: whether a call may come under the name that it calls us by, and from the page that it comes from.

One rule: where nobody needs a key, no web page may spend the owner's or give an order. Pages reach a loopback address
too: directly, with their own `origin`, or by a name that they let point here (DNS rebinding), which stands in `host`.
"""

import ipaddress
from collections.abc import Sequence
from fnmatch import fnmatchcase
from urllib.parse import urlsplit

from headgate.gateway.exchange import HttpExchange
from headgate.runtime.keys import NotAllowedError

_MOST_SHOWN_CHARS = 100


def check_host(exchange: HttpExchange, allowed: Sequence[str]) -> None:
    """Return if the request names this machine or one of the names that are allowed (patterns).

    Raises:
        NotAllowedError: it does not. What names none is no browser, and passes.
    """
    host = exchange.header(b"host")
    if host is not None and not _is_here(f"//{host}", allowed):
        raise NotAllowedError(
            f"host: {host[:_MOST_SHOWN_CHARS]!r} is not among allowed_hosts under [server]: "
            f"{', '.join(allowed)[:500]}, nor 127.0.0.1, localhost or [::1]"
        )


def check_nearby(exchange: HttpExchange, allowed: Sequence[str] = ()) -> None:
    """Return if the request names this machine (or what is `allowed`), and no page from elsewhere sent it.

    Raises:
        NotAllowedError: it does not. What sends no such header is no browser, and passes.
    """
    host, origin = exchange.header(b"host"), exchange.header(b"origin")
    if host is not None and not _is_here(f"//{host}", allowed):
        raise NotAllowedError(
            f"host: {host[:_MOST_SHOWN_CHARS]!r} is not this machine; without a key this gateway answers only to "
            "127.0.0.1, localhost, [::1] and allowed_hosts under [server]; use one of these in the base URL, or a key "
            "from `headgate keys create`"
        )
    if origin is not None and not _is_here(origin, allowed):
        raise NotAllowedError(
            f"origin: {origin[:_MOST_SHOWN_CHARS]!r}: a page from elsewhere may not call this gateway without a key; "
            "make one for it with `headgate keys create`"
        )
    # A page's picture or script says no origin. Whoever follows a link sees the answer, and the page does not.
    if exchange.header(b"sec-fetch-site") == "cross-site" and exchange.header(b"sec-fetch-mode") != "navigate":
        raise NotAllowedError("sec-fetch-site: a page from elsewhere may not call this gateway without a key")


def check_order(exchange: HttpExchange) -> None:
    """Return if no page gave this order, but for one that was served here.

    Raises:
        NotAllowedError: one did: one of this machine's other servers too, for nobody knows who speaks through it.
    """
    host, origin = exchange.header(b"host") or "", exchange.header(b"origin")
    if origin is not None and origin.lower() not in {f"http://{host.lower()}", f"https://{host.lower()}"}:
        raise NotAllowedError(
            f"origin: {origin[:_MOST_SHOWN_CHARS]!r}: without [server] admin_token no page but this gateway's own may "
            "give orders; set one, and send it"
        )
    site = exchange.header(b"sec-fetch-site")
    if site not in {None, "same-origin", "none"}:
        raise NotAllowedError(
            f"sec-fetch-site: {(site or '')[:_MOST_SHOWN_CHARS]!r}: without [server] admin_token no page but this "
            "gateway's own may give orders; set one, and send it"
        )


def _is_here(url: str, allowed: Sequence[str]) -> bool:
    try:
        name = urlsplit(url).hostname or ""
    except ValueError:
        return False
    if name == "localhost" or any(fnmatchcase(name, each) for each in allowed):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
