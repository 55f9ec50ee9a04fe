"""Proxies: which one stands between this machine and a host, as the environment says.

One rule: what every other program on the machine would do with these variables is done here too; a proxy's password is
in no message. This machine's own loopback is never asked of a proxy, which could not reach it.
"""

from base64 import b64encode
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from urllib.parse import unquote, urlsplit

from headgate.adapters.providers.http_request import Origin
from headgate.ports import Headers

__all__ = ["NO_PROXIES", "Proxies", "Proxy"]

_DEFAULT_PORT = 80
_LOOPBACK_NAME = "localhost"


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy, and the value of `proxy-authorization` that it wants."""

    host: str
    port: int
    authorization: bytes | None = field(default=None, repr=False)

    def with_authorization(self, headers: Headers) -> Headers:
        """Give headers with what the proxy wants, for calls that it sees."""
        if self.authorization is None:
            return headers
        return [*headers, (b"proxy-authorization", self.authorization)]

    @property
    def label(self) -> str:
        """`host:port`, as errors name it."""
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Unusable:
    """A variable that names something else, such as a SOCKS proxy: told when a host would be asked by it."""

    variable: str


@dataclass(frozen=True, slots=True)
class Proxies:
    """The proxies by the scheme of what is asked, and the hosts that are asked directly."""

    by_scheme: Mapping[str, "Proxy | Unusable"] = field(default_factory=dict)
    direct: tuple[str, ...] = ()

    @classmethod
    def of_environment(cls, environ: Mapping[str, str]) -> "Proxies":
        """Read `https_proxy`, `http_proxy`, `all_proxy` and `no_proxy`; the lower-case name goes before the other."""
        by_scheme: dict[str, Proxy | Unusable] = {}
        for scheme in ("http", "https"):
            for name in (f"{scheme}_proxy", "all_proxy"):
                # What a web server's scripts find in HTTP_PROXY is a header of their client (httpoxy, 2016).
                names = (name,) if name == "http_proxy" and "REQUEST_METHOD" in environ else (name, name.upper())
                found = next((each for each in names if environ.get(each)), None)
                if found is not None:
                    by_scheme[scheme] = _proxy(environ[found], found)
                    break
        listed = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
        return cls(by_scheme, tuple(each.strip().lower() for each in listed.split(",") if each.strip()))

    def proxy_for(self, origin: Origin) -> Proxy | None:
        """Give the proxy that a host is asked by; None if it is asked directly.

        Raises:
            ValueError: it can be asked by none; the message has the variable that says so, not its value, which may
                hold a password.
        """
        proxy = self.by_scheme.get(origin.scheme)
        if proxy is None or _is_loopback(origin.host) or any(_covers(each, origin) for each in self.direct):
            return None
        if isinstance(proxy, Unusable):
            raise ValueError(  # noqa: TRY004 - a value of the environment's
                f"{proxy.variable} names no HTTP proxy: expected http://[user:password@]host:port"
            )
        return proxy


NO_PROXIES = Proxies()


def _proxy(value: str, variable: str) -> Proxy | Unusable:
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        host, port = parts.hostname, parts.port or _DEFAULT_PORT
    except ValueError:
        host = port = None
    if not host or not port or parts.scheme != "http":
        return Unusable(variable)
    authorization = None
    if parts.username is not None:
        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = b"Basic " + b64encode(user.encode())
    return Proxy(host, port, authorization)


def _is_loopback(host: str) -> bool:
    with suppress(ValueError):
        return ip_address(host).is_loopback
    return host == _LOOPBACK_NAME or host.endswith(f".{_LOOPBACK_NAME}")


def _covers(entry: str, origin: Origin) -> bool:
    """Whether an entry of `no_proxy` names a host: itself, a domain above it, a network that has it, with its port."""
    if entry == "*":
        return True
    host = origin.host.lower()
    with suppress(ValueError):
        address = ip_address(host)
        with suppress(ValueError):
            return address in ip_network(entry, strict=False)
    name, colon, port = entry.rpartition(":")
    if colon and port.isdigit() and "]" not in port:
        if int(port) != origin.port:
            return False
        entry = name
    entry = entry.strip("[]").lstrip("*").lstrip(".")
    return host == entry or host.endswith(f".{entry}")
