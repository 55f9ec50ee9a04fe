"""Headgate's own headers: which a request may carry, and what may stand in them.

One rule: what a caller says in `x-headgate-...` is taken as it stands or refused by name. A slip of the pen would be
charged to nobody's budget, or to another's. What a client says in headers of its own (Claude Code's session and agent)
is made to fit instead, for nobody there can help it. Who the caller is, and what it may claim, is `callers`' affair.
"""

from collections.abc import Callable
from difflib import get_close_matches

from headgate.core.errors import CallerError
from headgate.core.scopes import NAME_CHARS, scope_name, unfit_name
from headgate.gateway.exchange import HttpExchange

MOST_TAGS = 10

ANSWERED = frozenset(
    f"x-headgate-{name}"
    for name in ("account", "batched", "cache", "call-id", "coalesced", "cost-micro-usd", "model-rule", "wait-ms")
)
"""What answers carry. A request that has them comes through another Headgate, or echoes an answer: they say nothing."""

_PREFIX = "x-headgate-"
_OURS = _PREFIX.encode()
_MOST_SHOWN_CHARS = 40


def _check_name(header: str, value: str) -> None:
    unfit = unfit_name(value)
    if unfit is not None and value:
        raise CallerError(f"{header}: {_shown(value)}: {unfit}")


def _check_tags(header: str, value: str) -> None:
    expected = f"expected name=value, or up to {MOST_TAGS} of them with commas between, of {NAME_CHARS}"
    names: set[str] = set()
    for tag in tags_in(value):
        name, equals, of = tag.partition("=")
        if not (name and equals and of) or scope_name(tag) != tag:
            raise CallerError(f"{header}: {_shown(tag)}: {expected}")
        if name in names:
            raise CallerError(f"{header}: {_shown(name)} stands there twice; {expected}")
        names.add(name)
    if not 0 < len(names) <= MOST_TAGS:
        raise CallerError(f"{header}: {len(names)} tags; {expected}")


def _anything(_header: str, _value: str) -> None:
    """Leave a value to whoever reads it."""


ASKED: dict[str, Callable[[str, str], None]] = {
    "x-headgate-session": _check_name,
    "x-headgate-agent": _check_name,
    "x-headgate-parent": _check_name,
    "x-headgate-run": _check_name,
    "x-headgate-team": _check_name,
    "x-headgate-tags": _check_tags,
    "x-headgate-priority": _anything,
    "x-headgate-class": _anything,
    "x-headgate-max-wait": _anything,
    "x-headgate-program-tokens": _anything,
}
"""What a request may say, and what checks it."""


def check_own_headers(exchange: HttpExchange) -> None:
    """Return if every header of Headgate's own that a request carries is known, stands once and can be used.

    Raises:
        CallerError: one is not; the message has its name and value, and what is expected.
    """
    # One search for all: most calls have none, and looking at each header costs more than the rest of this.
    if _OURS not in b"\n".join(exchange.named):
        return
    seen: set[str] = set()
    for name, value in exchange.headers:
        if not name.startswith(_OURS):
            continue
        header = name.decode("latin-1")
        if header in ANSWERED:
            continue
        check = ASKED.get(header)
        if check is None:
            near = get_close_matches(header.removeprefix(_PREFIX), [each.removeprefix(_PREFIX) for each in ASKED], n=1)
            meant = f"did you mean {_PREFIX}{near[0]}? " if near else ""
            raise CallerError(f"{header[:80]}: there is no such header; {meant}known are {', '.join(ASKED)}")
        if header in seen:
            raise CallerError(f"{header} stands twice in the request; expected it once")
        seen.add(header)
        said = value.decode("latin-1").strip()
        if not said:
            raise CallerError(f"{header} is empty; leave it out, or say something")
        check(header, said)


def tags_in(value: str) -> list[str]:
    """Give the tags of `x-headgate-tags`, each `name=value`."""
    return [tag for part in value.split(",") if (tag := part.strip())]


def _shown(value: str) -> str:
    text = value if len(value) <= _MOST_SHOWN_CHARS else value[:_MOST_SHOWN_CHARS] + "..."
    return ascii(text)
