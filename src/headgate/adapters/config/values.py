"""Values of a configuration that are more than numbers and words: secrets, addresses, files.

One rule: a reader gives a value that can be used as it is, or raises Unfit with what was expected; a key that stands in
the file itself is refused and not shown.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from headgate.adapters.config.settings import Secret
from headgate.adapters.config.tables import Reader, Unfit, number, text
from headgate.core.errors import ConfigError

__all__ = [
    "base_url",
    "default_store_path",
    "environment_secret",
    "listen",
    "model_glob",
    "name",
    "secret",
    "sqlite",
    "timeout_s",
]

STORE_FILE = "headgate.sqlite"

_REFERENCE = re.compile(r"env:([A-Za-z_][A-Za-z0-9_]*)")
_SQLITE = "sqlite:///"
_MOST_URL_CHARS = 2000
_MOST_PORT = 65_535
_MOST_HOSTS = 100
# An address of IPv6 stands without its brackets here.
_HOST = re.compile(r"(?=.*[A-Za-z0-9])[A-Za-z0-9*.:_-]{1,253}")

# Names stand in scopes, level names, headers and URLs: nothing in them needs quoting in any of these.
name = text(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", 'a name of letters, digits and . _ - such as "main"')
model_glob = text(r"[^\s\[\]]{1,200}", 'a model or a pattern such as "claude-sonnet-*" (without spaces and [ ])')

timeout_s = number(0.001, 86_400, "a number of seconds such as 10")


def secret(environ: Mapping[str, str]) -> Reader[Secret]:
    """Read `env:NAME` as the value of that environment variable."""

    def read(value: object) -> Secret:
        reference = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
        if reference is None:
            # Whatever stands there may be the key itself, pasted in.
            raise Unfit('expected "env:NAME" with the name of an environment variable that holds it', shown=False)
        variable = reference[1]
        if variable not in environ:
            raise Unfit(f"the environment variable {variable} is not set")
        try:
            return environment_secret(environ, variable)
        except ConfigError as error:
            raise Unfit(str(error)) from None

    return read


def environment_secret(environ: Mapping[str, str], variable: str) -> Secret:
    """Give the secret in a variable that is set.

    Raises:
        ConfigError: no header could carry what it holds.
    """
    value = environ[variable].strip()
    if not value or not value.isascii() or not value.isprintable():
        state = "is not one line of plain ASCII text" if value else "is empty"
        raise ConfigError(f"the environment variable {variable} {state}; expected a key")
    return Secret(value)


def listen(value: object) -> tuple[str, int]:
    """Read `host:port`; an IPv6 address stands in brackets."""
    expected = Unfit('expected an address such as "127.0.0.1:8484" or "[::1]:8484"')
    if not isinstance(value, str):
        raise expected
    host, _, port = value.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise expected
    if not re.fullmatch(r"[A-Za-z0-9.:_%-]+", host) or not re.fullmatch(r"[0-9]{1,5}", port):
        raise expected
    if int(port) > _MOST_PORT:
        raise Unfit(f"expected a port of at most {_MOST_PORT}")
    return host, int(port)


def base_url(value: object) -> str:
    """Read the address of a provider; a slash at its end may be there or not."""
    expected = 'expected a URL such as "https://api.example.com", without a user, a query and a fragment'
    if not isinstance(value, str) or len(value) > _MOST_URL_CHARS or not value.isascii() or not value.isprintable():
        raise Unfit(expected)
    try:
        parts = urlsplit(value)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets that are no address, a port that is no number
        usable = False
    if not usable or " " in value or "@" in parts.netloc or "?" in value or "#" in value:
        raise Unfit(expected)
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def model_globs(value: object) -> tuple[str, ...]:
    """Read a list of patterns of models."""
    if not isinstance(value, list) or not value:
        raise Unfit('expected a list of models or patterns such as ["claude-*"]')
    globs: list[str] = []
    for index, entry in enumerate(value):
        try:
            globs.append(model_glob(entry))
        except Unfit as unfit:
            raise Unfit(str(unfit), inside=(index,)) from None
    return tuple(globs)


def host_names(value: object) -> tuple[str, ...]:
    """Read a list of names of hosts, or patterns of them, without ports."""
    expected = 'expected a list of names of hosts without ports, such as ["gate.example.com", "*.internal"]'
    if not isinstance(value, list) or not 0 < len(value) <= _MOST_HOSTS:
        raise Unfit(expected)
    for index, entry in enumerate(value):
        if not isinstance(entry, str) or _HOST.fullmatch(entry) is None:
            raise Unfit(expected, inside=(index,))
    return tuple(entry.lower() for entry in value)


def sqlite(folder: Path, environ: Mapping[str, str]) -> Reader[Path]:
    """Read `sqlite:///path`; a path that does not begin with / or ~/ is relative to `folder`."""

    def read(value: object) -> Path:
        if not isinstance(value, str) or not value.startswith(_SQLITE) or not value.isprintable():
            raise Unfit('expected "sqlite:///path/to/file", the only kind of store that this version has')
        path = value.removeprefix(_SQLITE)
        if not path or path.endswith("/") or "?" in path or ":memory:" in path:
            raise Unfit('expected the path of a file, such as "sqlite:///headgate.sqlite"')
        if path.startswith("~/"):
            return _home(environ) / path.removeprefix("~/")
        return (folder / path).absolute()

    return read


def default_store_path(environ: Mapping[str, str]) -> Path:
    """Give where the store is when nobody says."""
    if environ.get("HEADGATE_HOME"):
        return Path(environ["HEADGATE_HOME"]).absolute() / STORE_FILE
    state = Path(environ.get("XDG_STATE_HOME", ""))
    # The XDG base directory specification has relative paths ignored.
    folder = state if state.is_absolute() else _home(environ) / ".local" / "state"
    return folder / "headgate" / STORE_FILE


def _home(environ: Mapping[str, str]) -> Path:
    return Path(environ["HOME"]) if environ.get("HOME") else Path.home()
