"""Scopes: whom a call belongs to, and which limits it therefore meets.

One rule: a call is charged at every scope on its path, so a child draws from what its parents have left; no scope is
special. A scope reads `kind:value`; a tag reads `tag:name=value`.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import lru_cache, partial
from typing import Literal, NamedTuple, get_args

from headgate.core.limits import Gauge, Limit, Rate, Rolling, Window

ScopeKind = Literal["account", "key", "team", "run", "agent", "session", "tag"]
SCOPE_KINDS: tuple[ScopeKind, ...] = get_args(ScopeKind)


class Scopes(NamedTuple):
    """The scopes of one call; None where it has none. `parent` is the agent that started this one.

    `claimed` has the kinds (of a tag `tag:name`) that a key's bearer said of itself, and nobody who vouches for it, and
    the agents of a fleet, whose names are the run's: such a scope is the bearer's own, however others call theirs. The
    names stay plain for reading.
    """

    account: str | None = None
    key: str | None = None
    team: str | None = None
    run: str | None = None
    agent: str | None = None
    session: str | None = None
    parent: str | None = None
    tags: tuple[tuple[str, str], ...] = ()
    claimed: tuple[str, ...] = ()

    def at(self, account: str) -> "Scopes":
        """Give those of a call that goes to an account."""
        return _scopes((account, *self[1:]))

    @property
    def bearer(self) -> str | None:
        """Whose a claimed scope is: the run that the key was made for, with all its keys, or else the key."""
        if self.run is not None and "run" not in self.claimed:
            return f"run:{self.run}"
        return None if self.key is None else f"key:{self.key}"

    def path(self) -> tuple[str, ...]:
        """The scopes in words, from the widest to the narrowest; `parent` is attribution, not a scope of its own.

        What is claimed reads `team:search|key:ci`. Agents and sessions are claimed within their run, if they have one,
        so that each run's begin anew: `agent:docs|run:7f3a`, and of a run that is claimed `agent:docs|run:7f3a|key:ci`.
        """
        pairs = (
            ("account", self.account),
            ("key", self.key),
            ("team", self.team),
            ("run", self.run),
            ("agent", self.agent),
            ("session", self.session),
        )
        named = [(kind, f"{kind}:{value}") for kind, value in pairs if value is not None]
        named += [(f"tag:{name}", f"tag:{name}={value}") for name, value in self.tags]
        bearer = self.bearer
        if bearer is None or not self.claimed:
            return tuple(word for _, word in named)
        within = f"run:{self.run}{_OF}{bearer}" if self.run is not None and "run" in self.claimed else bearer
        owners = dict.fromkeys(self.claimed, bearer) | {kind: within for kind in _OF_A_RUN if kind in self.claimed}
        return tuple(f"{word}{_OF}{owners[kind]}" if kind in owners else word for kind, word in named)


_scopes = partial(tuple.__new__, Scopes)

NO_SCOPES = Scopes()

_OF_A_RUN: tuple[ScopeKind, ...] = ("agent", "session")

_OF = "|"
"""Stands between a claimed scope and whose it is; no name has one (see `_UNFIT`), so none can pass for another's."""

MOST_NAME_CHARS = 200
_UNFIT = re.compile(r"[^\w.:@/#+=-]", re.ASCII)
"""What cannot stand in a scope's name: white space separates the words of a level's name."""


NAME_CHARS = "letters (A to Z), digits and . _ - : @ / # + ="
"""What can, in words."""


def scope_name(value: str) -> str:
    """Give a value as it can stand in a scope: bounded, without white space or control characters."""
    return _UNFIT.sub("_", value)[:MOST_NAME_CHARS]


def unfit_name(value: str) -> str | None:
    """Say what is expected in place of a value that cannot stand in a scope as it is; None where it can."""
    if value and scope_name(value) == value:
        return None
    long = f", not {len(value):,}" if len(value) > MOST_NAME_CHARS else ""
    return f"expected a name of 1 to {MOST_NAME_CHARS} {NAME_CHARS}{long}"


def unfit_scope(scope: str, wild: str = "") -> str | None:
    """Say what is expected in place of words that name no scope, or with `wild` characters no pattern; None if fit.

    Of a claimed scope (`agent:docs|run:7f3a`) every part must be fit.
    """
    for word in scope.split(_OF):
        kind, colon, name = word.partition(":")
        if kind not in SCOPE_KINDS or not colon:
            return f"expected one of {', '.join(SCOPE_KINDS)} with a name, such as key:ci"
        plain = "".join(char for char in name if char not in wild)
        if (not name or plain) and (unfit := unfit_name(plain)) is not None:
            return f"{unfit} after {kind}:"
        if kind == "tag" and plain == name and not all(name.partition("=")[::2]):
            return "expected tag:name=value"
    return None


@lru_cache(maxsize=10_000)
def fit(scopes: Scopes) -> Scopes:
    """Give scopes with names that can stand in them."""
    account, key, team, run, agent, session, parent, tags, claimed = scopes
    return Scopes(
        _fit(account),
        _fit(key),
        _fit(team),
        _fit(run),
        _fit(agent),
        _fit(session),
        _fit(parent),
        tuple((scope_name(name), scope_name(value)) for name, value in tags),
        claimed,
    )


def _fit(value: str | None) -> str | None:
    return None if value is None else scope_name(value)


def is_own(scope: str, owned: Scopes) -> bool:
    """Whether a scope in words is one of a bearer's `owned`, or one that the bearer claimed.

    Who is an agent owns none of the other agents', though all of them claim what they do within one run.
    """
    if scope in owned.path():
        return True
    of_another = owned.agent is not None and scope.startswith("agent:")
    return owned.bearer is not None and scope.endswith(f"{_OF}{owned.bearer}") and not of_another


@dataclass(frozen=True, slots=True)
class LimitRule:
    """A limit as it is configured: for a scope or a pattern of scopes, for all models or a glob of them.

    `run:*` limits each run by itself; a glob of models is one class that all of them share. `run:a|key:ci` is the run
    that the bearers of one key claim.
    """

    scope: str
    template: Limit

    def bind(self, path: Sequence[str], model: str) -> Limit | None:
        """Give the limit for the scope on `path` that the rule names, or None if the call does not meet it."""
        if self.template.models is not None and not fnmatchcase(model, self.template.models):
            return None
        names_bearer = _OF in self.scope
        for scope in path:
            if fnmatchcase(scope if names_bearer else scope.partition(_OF)[0], self.scope):
                return _limit_of(self.template, scope)
        return None


@lru_cache(maxsize=4_096)
def _limit_of(template: Limit, scope: str) -> Limit:
    """Give a rule's limit for one scope; remembered, for making it costs ten times as much."""
    return replace(template, name=level_name(scope, template), scope=scope)


def limits_for(rules: Iterable[LimitRule], path: Sequence[str], model: str) -> tuple[Limit, ...]:
    """Give every limit that a call meets, in the order of the rules, each level once."""
    bound = (rule.bind(path, model) for rule in rules)
    return tuple({limit.name: limit for limit in bound if limit is not None}.values())


def level_name(scope: str, limit: Limit) -> str:
    """Name the level of a limit.

    The name has all that gives the level its meaning and nothing that an owner may change while it lives: another
    amount goes on from the same level, another kind of limit begins a new one.
    """
    models = limit.models or "*"
    match limit:
        case Rate():
            manner = f"rate-{limit.period_s}s"
        case Window():
            manner = limit.span.name
        case Rolling():
            manner = f"rolling-{limit.period_s}s"
        case Gauge():
            manner = "gauge"
    return f"{scope} {models} {limit.dimension} {manner}"


def lane_of(limit: Limit) -> str:
    """Name the lane in which calls wait for a limit: its scope and class of models, whatever the dimension."""
    return limit.lane
