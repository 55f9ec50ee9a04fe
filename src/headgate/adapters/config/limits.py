"""Limits as people write and read them: `<dimension>_per_<span>` into rules of the core, and rules into words.

One rule: the span alone decides the kind of limit (see SPANS), whatever the dimension. Whether a scope exists is not
known here.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from decimal import Decimal
from fnmatch import fnmatchcase
from typing import assert_never
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from headgate.adapters.config.lines import TomlPath
from headgate.adapters.config.tables import (
    Problems,
    Reader,
    Table,
    Unfit,
    choice,
    dollars,
    number,
    unknown_hint,
    whole,
)
from headgate.adapters.config.values import model_glob
from headgate.core.amounts import MICRO_USD_PER_USD, Dimension
from headgate.core.limits import Gauge, Limit, Rate, Rolling, Window
from headgate.core.scopes import SCOPE_KINDS, LimitRule, level_name, unfit_scope
from headgate.core.spans import Calendar, CalendarUnit, Fixed, Lifetime, OpenedByUse, Span

__all__ = [
    "LIMIT_WORDS",
    "ReadRule",
    "limit_rules",
    "limits_in_words",
    "read_limits",
    "read_timezone",
    "scope_among",
    "scope_pattern",
]

HOUR_S = 3600
DAY_S = 24 * HOUR_S
WEEK_S = 7 * DAY_S

A_MONDAY_S = 4 * DAY_S
"""Midnight (UTC) of the first Monday after the epoch: where fixed windows are counted from when nobody says."""

MOST_SCOPE_CHARS = 200

_UTC: tzinfo = UTC


@dataclass(frozen=True, slots=True)
class _Refilled:
    """A rate: refilled continuously over the period."""

    period_s: int


@dataclass(frozen=True, slots=True)
class _Sliding:
    """Any stretch of the period."""

    period_s: int


@dataclass(frozen=True, slots=True)
class _EndToEnd:
    """Windows of exactly the period, one after the other from the entry's anchor."""

    period_s: int


_Manner = _Refilled | _Sliding | _EndToEnd | CalendarUnit | OpenedByUse | Lifetime

SPANS: Mapping[str, _Manner] = {
    "second": _Refilled(1),
    "minute": _Refilled(60),
    "hour": "hour",
    "day": "day",
    "week": "week",
    "month": "month",
    "rolling_hour": _Sliding(HOUR_S),
    "rolling_day": _Sliding(DAY_S),
    "rolling_week": _Sliding(WEEK_S),
    "fixed_minute": _EndToEnd(60),
    "fixed_hour": _EndToEnd(HOUR_S),
    "fixed_day": _EndToEnd(DAY_S),
    "fixed_week": _EndToEnd(WEEK_S),
    "5h": OpenedByUse(5 * HOUR_S),
    "7d": OpenedByUse(7 * DAY_S),
    "lifetime": Lifetime(),
}

DIMENSION_WORDS: Mapping[str, Dimension] = {
    "requests": "requests",
    "input_tokens": "input_tokens",
    "output_tokens": "output_tokens",
    "tokens": "tokens",
    "usd": "micro_usd",
}

# Money has no rate: a rate forgives a guess that was too low, and a budget must not.
LIMIT_WORDS: Mapping[str, tuple[Dimension, str]] = {
    f"{word}_per_{span}": (dimension, span)
    for word, dimension in DIMENSION_WORDS.items()
    for span, manner in SPANS.items()
    if not (dimension == "micro_usd" and isinstance(manner, _Refilled))
}
"""Each limit word, with its dimension and the name of its span; `slots` is the only one beside these."""

_RATE_SPANS = [span for span, manner in SPANS.items() if isinstance(manner, _Refilled)]
_HINTS = {
    word: f"over which span? Expected a word such as {word}_per_{'day' if word == 'usd' else 'minute'}"
    for word in DIMENSION_WORDS
}
_HINTS |= {
    f"usd_per_{span}": "money has no rate; expected usd_per_hour or a longer span" for span in ("second", "minute")
}
_HINTS |= {
    f"{word}_per_{manner}_month": f"months differ in length; expected {word}_per_month, the calendar's"
    for word in DIMENSION_WORDS
    for manner in ("rolling", "fixed")
}
_HINTS |= {
    f"{word}_per_calendar_{unit}": f"spans without a word before them are the calendar's; expected {word}_per_{unit}"
    for word in DIMENSION_WORDS
    for unit in ("hour", "day", "week", "month")
}

# A provider's bucket is as deep as its period is long. Calls arrive with jitter, so a sixth of it stays unused; the
# depth costs no throughput, because the bucket refills at the full rate all the same.
_BURST_NUMERATOR, _BURST_DENOMINATOR = 5, 6

# What a provider counts in full when the call arrives: a request is one request, and OpenAI reserves its tokens
# (wire.md section 3).
_CERTAIN_AT_START: Collection[Dimension] = ("requests", "tokens")

_GUESSED: Collection[Dimension] = ("micro_usd", "tokens", "output_tokens")
"""Of these a window can hold what is likely: of input it holds no more in any case, unless it is money."""

_HOLDS: Mapping[str, tuple[bool, bool]] = {"bound": (False, False), "likely": (True, False), "guarded": (True, True)}
"""Whether a window holds what is likely, and whether it ends streams."""

_burst_s = number(0.001, HOUR_S, "a number of seconds such as 50")


@dataclass(frozen=True, slots=True)
class ReadRule:
    """A rule, and the word that it was read from."""

    rule: LimitRule
    word: str
    path: TomlPath


def limit_rules(scope: str, entries: Iterable[Mapping[str, object]]) -> tuple[LimitRule, ...]:
    """Give the rules of limits that are written in a configuration's words but kept elsewhere, such as a key's own.

    Raises:
        ConfigError: a word or a value cannot be used.
    """
    problems = Problems()
    found: list[ReadRule] = []
    for index, entry in enumerate(entries):
        table = Table(problems, (index,), scope, entry)
        found += read_limits(table, scope, models=read_models(table))
        close_limits(table)
    note_duplicates(problems, found)
    problems.raise_any()
    return tuple(read.rule for read in found)


def read_limits(table: Table, scope: str, *, models: str | None = None) -> list[ReadRule]:
    """Read every limit word of a table, and the words that say how: burst_s, quantum_s, timezone, anchor, hold."""
    said = _Qualifiers(
        burst_s=table.take("burst_s", _burst_s, None),
        quantum_s=table.take("quantum_s", _quantum, None),
        zone=table.take("timezone", read_timezone, _UTC),
        anchor_s=table.take("anchor", _anchor, A_MONDAY_S),
        holds=table.take("hold", choice(_HOLDS), (False, False)),
    )
    templates: list[tuple[str, Limit]] = []
    for word, (dimension, span) in LIMIT_WORDS.items():
        if table.has(word):
            read = dollars() if dimension == "micro_usd" else whole()
            shape = _Shape(scope, models, dimension, table.take(word, read, 1))
            templates += [(word, limit) for limit in _limits(shape, SPANS[span], said)]
    if table.has("slots"):
        templates.append(("slots", Gauge("", scope, "slots", table.take("slots", whole(most=1_000_000), 1), models)))
    limits = [limit for _word, limit in templates]
    _expect(table, "burst_s", "a rate such as requests_per_minute", any(isinstance(each, Rate) for each in limits))
    _expect(table, "quantum_s", "requests_per_minute", table.has("requests_per_minute"))
    _expect(table, "timezone", "a calendar span such as usd_per_day", any(_spans(limits, Calendar)))
    _expect(table, "anchor", "a fixed span such as usd_per_fixed_day", any(_spans(limits, Fixed)))
    guessed = (isinstance(each, Window | Rolling) and each.dimension in _GUESSED for each in limits)
    _expect(table, "hold", "a window of dollars, tokens or output_tokens such as usd_per_day", any(guessed))
    return [ReadRule(LimitRule(scope, limit), word, (*table.path, word)) for word, limit in templates]


def read_models(table: Table) -> str | None:
    """Read the class of models that a limit is for; None stands for all."""
    models = table.take("models", model_glob, "*")
    return None if models == "*" else models


def close_limits(table: Table) -> None:
    """Note unknown words, with what each was probably meant to be."""
    table.close([*LIMIT_WORDS, "slots"], _HINTS, "a limit such as requests_per_minute, usd_per_day or slots")


def note_duplicates(problems: Problems, found: Sequence[ReadRule]) -> None:
    """Note every limit that an earlier one already gives: same scope, models, dimension and span."""
    first: dict[str, ReadRule] = {}
    for read in found:
        earlier = first.setdefault(level_name(read.rule.scope, read.rule.template), read)
        if earlier is not read:
            where = f"{earlier.word}{problems.in_line(earlier.path)}"
            problems.add(read.path, f"{read.word}: {read.rule.scope} already has this limit from {where}")


def scope_pattern(value: object) -> str:
    """Read a scope, such as `account:main`, or a pattern of scopes, such as `run:*`."""
    example = "expected a scope such as account:main, key:ci, run:* or tag:team=search"
    if not isinstance(value, str) or len(value) > MOST_SCOPE_CHARS:
        raise Unfit(example)
    kind, colon, name = value.partition(":")
    if not colon:
        raise Unfit(example)
    if kind not in SCOPE_KINDS:
        raise Unfit(f"{kind!r} is {unknown_hint(kind, SCOPE_KINDS)}" if kind.isidentifier() else example)
    # The names of levels end a scope with a space, and only * is told from a plain character everywhere.
    unfit = unfit_scope(value, "*")
    if kind == "tag" and not all(name.partition("=")[::2]):
        raise Unfit("expected tag:name=value, where * stands for each value by itself")
    if unfit is not None:
        raise Unfit(f"{unfit}, or a pattern of these with *")
    return value


def scope_among(accounts: Sequence[str]) -> Reader[str]:
    """Read a scope or a pattern of scopes; one of accounts must fit one of these."""

    def read(value: object) -> str:
        scope = scope_pattern(value)
        kind, _, pattern = scope.partition(":")
        if kind == "account" and not any(fnmatchcase(each, pattern) for each in accounts):
            known = f"configured: {', '.join(filter(None, accounts))}" if any(accounts) else "none is configured"
            raise Unfit(f"no such account; {known}")
        return scope

    return read


def limits_in_words(rules: Iterable[LimitRule]) -> list[tuple[str, str, str]]:
    """Give rules as rows for people: the scope, the models, and the limit in words."""
    return [
        (
            f"{rule.scope} (each)" if "*" in rule.scope else rule.scope,
            rule.template.models or "all models",
            _in_words(rule.template),
        )
        for rule in rules
    ]


@dataclass(frozen=True, slots=True)
class _Shape:
    scope: str
    models: str | None
    dimension: Dimension
    amount: int


@dataclass(frozen=True, slots=True)
class _Qualifiers:
    """What an entry says of how its limits work."""

    burst_s: float | None
    quantum_s: int | None
    zone: tzinfo
    anchor_s: int
    holds: tuple[bool, bool]


def _limits(shape: _Shape, manner: _Manner, said: _Qualifiers) -> list[Limit]:
    match manner:
        case _Refilled(period_s):
            rates: list[Limit] = [_rate(shape, period_s, said.burst_s)]
            quantum_s = said.quantum_s
            if quantum_s is not None and period_s > quantum_s and shape.dimension == "requests":
                rates.append(_quantum_rate(shape, period_s, quantum_s))
            return rates
        case _Sliding(period_s):
            holds = _holds(shape, said)
            return [Rolling("", shape.scope, shape.dimension, shape.amount, period_s, shape.models, *holds)]
        case _EndToEnd(period_s):
            return [_window(shape, Fixed.anchored(period_s, said.anchor_s), said)]
        case OpenedByUse() | Lifetime():
            return [_window(shape, manner, said)]
        case "hour" | "day" | "week" | "month":
            return [_window(shape, Calendar(manner, said.zone), said)]
        case _:
            assert_never(manner)


def _window(shape: _Shape, span: Span, said: _Qualifiers) -> Window:
    holds_likely, ends = _holds(shape, said)
    return Window("", shape.scope, shape.dimension, shape.amount, span, shape.models, 0, holds_likely, ends)


def _holds(shape: _Shape, said: _Qualifiers) -> tuple[bool, bool]:
    return said.holds if shape.dimension in _GUESSED else (False, False)


def _rate(shape: _Shape, period_s: int, burst_s: float | None) -> Rate:
    if burst_s is None:
        burst = shape.amount * _BURST_NUMERATOR // _BURST_DENOMINATOR
    else:
        burst = int(shape.amount * Decimal(str(burst_s)) / period_s)
    return Rate(
        "",
        shape.scope,
        shape.dimension,
        shape.amount,
        period_s,
        max(1, burst),
        shape.models,
        # A call that needs the whole of a provider's bucket fits once nothing else is in it.
        largest=shape.amount if burst_s is None else None,
        charged_at_start=shape.dimension in _CERTAIN_AT_START,
    )


def _quantum_rate(shape: _Shape, period_s: int, quantum_s: int) -> Rate:
    """Give the second row for a provider that also enforces its rate over shorter periods (wire.md section 3).

    Only requests: a single call may need more tokens than a second's share, so tokens cannot be meant. Where the rate
    is no whole number per quantum, it is kept exactly over two periods: rounding would lose up to half of it.
    """
    amount, over_s = shape.amount * quantum_s // period_s, quantum_s
    if amount * period_s != shape.amount * quantum_s:
        amount, over_s = 2 * shape.amount, 2 * period_s
    burst = shape.amount * quantum_s * _BURST_NUMERATOR // (period_s * _BURST_DENOMINATOR)
    return Rate(
        "",
        shape.scope,
        shape.dimension,
        amount,
        over_s,
        max(1, burst),
        shape.models,
        charged_at_start=True,
    )


def _spans(limits: Iterable[Limit], kind: type[Span]) -> Iterator[bool]:
    return (isinstance(limit, Window) and isinstance(limit.span, kind) for limit in limits)


def _expect(table: Table, word: str, needed: str, present: bool) -> None:  # noqa: FBT001 - the answer to a question
    if table.has(word) and not present:
        table.problem(word, f"changes nothing here; expected {needed} beside it")


def _quantum(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value not in (1, 10):
        raise Unfit("expected 1 or 10 (seconds)")
    return value


def read_timezone(value: object) -> tzinfo:
    """Read the clock that times of day and calendar spans follow."""
    if value == "UTC":
        return UTC
    if isinstance(value, str):
        try:
            return ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            pass  # ValueError: a path, or no time zone file; OSError: a folder of the tzdata package
    raise Unfit('expected a time zone such as "Europe/Berlin"')


def _anchor(value: object) -> int:
    """Read an instant; a text will do, because JSON, in which keys keep their limits, has no instants."""
    try:
        at = datetime.fromisoformat(value) if isinstance(value, str) else value
        if isinstance(at, datetime) and at.tzinfo is not None:
            at_s = at.timestamp()
            if at_s.is_integer():
                return int(at_s)
    except (ValueError, OverflowError):
        pass  # no instant, or one at the edge of what can be counted
    raise Unfit("expected an instant in whole seconds with its offset, such as 2026-01-05T06:00:00Z")


def _in_words(limit: Limit) -> str:
    amount = _amount_in_words(limit.dimension, limit.amount)
    match limit:
        case Gauge():
            return f"{amount} at once"
        case Rate():
            return f"{amount} per {_period_in_words(limit.period_s)}, at most {limit.burst:,} at once"
        case Rolling():
            return f"{amount} in any {_period_in_words(limit.period_s)}"
        case Window():
            return f"{amount} {_span_in_words(limit.span)}"
        case _:
            assert_never(limit)


def _span_in_words(span: Span) -> str:
    match span:
        case Calendar(unit, zone):
            return f"per {unit}" if zone is UTC else f"per {unit} ({zone})"
        case OpenedByUse(period_s):
            return f"per {_period_in_words(period_s)} from the first call"
        case Fixed(period_s, anchor_s):
            begins = datetime.fromtimestamp(anchor_s, UTC)
            if period_s == WEEK_S:
                return f"per fixed week from {begins:%A %H:%M:%S} UTC"
            return f"per fixed {_period_in_words(period_s)} from {begins:%H:%M:%S} UTC"
        case Lifetime():
            return "in all"
        case _:
            assert_never(span)


def _amount_in_words(dimension: Dimension, amount: int) -> str:
    if dimension == "micro_usd":
        whole_usd, rest = divmod(amount, MICRO_USD_PER_USD)
        cents, parts = divmod(rest, 10_000)
        return f"${whole_usd:,}.{cents:02}" + (f"{parts:04}".rstrip("0") if parts else "")
    units = "calls" if dimension == "slots" else dimension.replace("_", " ")
    return f"{amount:,} {units.removesuffix('s') if amount == 1 else units}"


def _period_in_words(period_s: int) -> str:
    named = {1: "second", 60: "minute", HOUR_S: "hour", DAY_S: "day"}
    if period_s in named:
        return named[period_s]
    for length_s, unit in ((DAY_S, "days"), (HOUR_S, "hours"), (60, "minutes")):
        if period_s % length_s == 0:
            return f"{period_s // length_s} {unit}"
    return f"{period_s} seconds"
