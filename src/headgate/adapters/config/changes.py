"""Changes: what differs between two configurations, in words, and what of it a running process cannot take up.

One rule: it compares what was read and checked, never files; what is done with a change is not known here.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from decimal import Decimal
from typing import Any

from headgate.adapters.config.limits import limits_in_words
from headgate.adapters.config.settings import Config, ConfiguredMaintenance
from headgate.core.scopes import LimitRule, level_name

__all__ = ["changes_in_words", "needs_restart"]


def needs_restart(before: Config, after: Config) -> list[str]:
    """Name what a running process cannot take up: where it listens and keeps things, and its accounts."""
    words = {"host": "listen", "port": "listen"}
    server = list(
        dict.fromkeys(f"[server] {words.get(name, name)}" for name in _differing(before.server, after.server))
    )
    store = [f"[store] {name}" for name in _differing(before.store, after.store)]
    timeouts = [f"[timeouts] {name}" for name in _differing(before.timeouts, after.timeouts)]
    had, has = ({each.account.name: each for each in config.accounts} for config in (before, after))
    names = [name for name in {**had, **has} if had.get(name) != has.get(name)]
    if not names and list(had) != list(has):
        names = list(has)  # of equal ones the first serves
    return [*server, *store, *timeouts, *(f"[[account]] {name}" for name in names)]


def changes_in_words(before: Config, after: Config) -> list[str]:
    """Say what differs of all that a running process can take up, a line each; nothing where nothing does."""
    had, has = ({rule.name: rule for rule in config.model_rules} for config in (before, after))
    order = (
        [f"model_rule: the order is {', '.join(has)} now"] if set(had) == set(has) and list(had) != list(has) else []
    )
    return [
        *_limits(before.limits, after.limits),
        *_named("key", {key.name: key for key in before.keys}, {key.name: key for key in after.keys}),
        *_fields("scheduler", before.scheduling, after.scheduling),
        *_windows(before.maintenance, after.maintenance),
        *_named("model_rule", had, has),
        *order,
        *_named("price", {each.model: each for each in before.prices}, {each.model: each for each in after.prices}),
        *_named(
            "price (how far it reaches)",
            {each.model: each for each in before.windows},
            {each.model: each for each in after.windows},
        ),
        *_fields("retries", before.retries, after.retries),
    ]


def _limits(before: Iterable[LimitRule], after: Iterable[LimitRule]) -> Iterator[str]:
    had, has = ({level_name(rule.scope, rule.template): rule for rule in rules} for rules in (before, after))
    for name in {**had, **has}:
        ((scope, models, _words),) = limits_in_words([has.get(name) or had[name]])
        where = scope if models == "all models" else f"{scope} ({models})"
        old, new = (_limit_in_words(rules.get(name)) for rules in (had, has))
        if had.get(name) == has.get(name):
            continue
        if old is None:
            yield f"limit {where}: {new}, which is new"
        elif new is None:
            yield f"limit {where}: {old}, which is gone"
        else:
            yield f"limit {where}: {new} instead of {old}"


def _limit_in_words(rule: LimitRule | None) -> str | None:
    return None if rule is None else limits_in_words([rule])[0][2]


def _windows(before: Sequence[ConfiguredMaintenance], after: Sequence[ConfiguredMaintenance]) -> Iterator[str]:
    for each in after:
        if each not in before:
            yield f"{_window_in_words(each)}, which is new"
    for each in before:
        if each not in after:
            yield f"{_window_in_words(each)}, which is gone"


def _window_in_words(window: ConfiguredMaintenance) -> str:
    spans = window.spans
    models = "" if window.models is None else f" ({window.models})"
    scope = "all calls" if window.scope == "*" else window.scope
    return (
        f'maintenance "{window.cron}" ({spans.zone}, {spans.duration_s // 60} min) for {scope}{models}: {window.action}'
    )


def _named(kind: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """Compare what goes by names."""
    for name in {**before, **after}:
        if name not in before:
            yield f"{kind} {name}: is new"
        elif name not in after:
            yield f"{kind} {name}: is gone"
        else:
            yield from _fields(f"{kind} {name}", before[name], after[name])


def _fields(what: str, before: Any, after: Any) -> Iterator[str]:
    for name in _differing(before, after):
        yield f"{what}: {name} = {_value(getattr(after, name))} instead of {_value(getattr(before, name))}"


def _differing(before: Any, after: Any) -> list[str]:
    """Name the fields in which two values of one class differ."""
    return [each.name for each in fields(before) if getattr(before, each.name) != getattr(after, each.name)]


def _value(value: object) -> str:
    match value:
        case str():
            return f'"{value}"'
        case Decimal():
            return f"{value:f}"
        case None:
            return "none"
        case Mapping():
            return "{" + ", ".join(f"{name} = {_value(each)}" for name, each in value.items()) + "}"
        case tuple() if all(isinstance(each, tuple) and len(each) == 2 for each in value) and value:  # noqa: PLR2004 - a pair
            return _value(dict(value))
        case tuple() | list():
            return "[" + ", ".join(_value(each) for each in value) + "]"
        case _:
            return str(value)
