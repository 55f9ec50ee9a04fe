"""What every `LedgerStore` has to do.

One rule: no attempt is lost and none is counted twice, and sums are exact whole numbers however they are asked for.
`expected_usage` says what a ledger has to answer, from the rows alone.
"""

import asyncio
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from datetime import UTC, datetime
from typing import get_args

from headgate.core.errors import CallerError
from headgate.core.ledger import Attempt, AttemptState, GroupBy, UsageGroup, UsageQuery
from headgate.core.scopes import Scopes
from headgate.core.usage import Usage
from headgate.ports import LedgerStore
from headgate.testing.exercises import Exercise, OpenStore

HOUR_S = 3600
START_S = 1_750_000_000.0 // HOUR_S * HOUR_S
"""A whole hour."""

STATES: tuple[AttemptState, ...] = get_args(AttemptState)
FIELDS: tuple[GroupBy, ...] = get_args(GroupBy)
_SUMS = [field.name for field in fields(UsageGroup) if field.name != "group"]
_SEED = 42
_EVERY_SCOPE = Scopes(
    "main", "ci", "search", "run-1", "agent-1", "session-1", "parent-1", (("a", "b"), ("ü", '"')), ("session", "tag:a")
)


def an_attempt(number: int = 1, *, admitted_s: float = START_S + 10, account: str | None = "main") -> Attempt:
    """Give an attempt in flight with plain values."""
    return Attempt(
        id=f"attempt-{number}",
        call=f"call-{number}",
        attempt=1,
        owner="host:1:2:3",
        scopes=Scopes(account=account, key="ci"),
        endpoint="messages",
        model="claude-sonnet-4-5",
        queued_s=admitted_s - 1.5,
        admitted_s=admitted_s,
        usage=Usage(100, 20, 3, 4, 50, 10, reported=False),
        held_micro_usd=900,
    )


def a_full_attempt() -> Attempt:
    """Give a final attempt in which every field has a value of its own."""
    return replace(
        an_attempt(7),
        attempt=3,
        scopes=_EVERY_SCOPE,
        usage=Usage(1, 2, 3, 4, 5, 6, reported=True),
        cost_micro_usd=123,
        price_version="2026-11-01",
        state="failed",
        model_served="claude-sonnet-4-5-20250929",
        status=529,
        error_type="overloaded_error",
        provider_request="req_1",
        first_byte_s=START_S + 11.25,
        done_s=START_S + 12.5,
        sent=False,
        asked_model="claude-opus-4-6",
        rule="night",
    )


def random_attempts(chooser: random.Random, most: int, *, hours: int = 4) -> list[Attempt]:
    """Give attempts of all states over some hours, of which few fields differ so that they fall into groups."""

    def one_of(*values: str | None) -> str | None:
        return chooser.choice(values)

    def tokens() -> int:
        return chooser.choice((0, chooser.randrange(300_000)))

    attempts = []
    for number in range(chooser.randrange(most + 1)):
        # Whole hours, a moment before them, and in between.
        second = chooser.randrange(hours + 1) * HOUR_S + chooser.choice((0, -0.001, chooser.uniform(0, HOUR_S)))
        scopes = Scopes(
            one_of("main", "other", None), one_of("ci", None), one_of("search", "", None), one_of("run-1", None),
            one_of("a", "b", "c", None), one_of("s1", "s2", None),
        )  # fmt: skip
        usage = Usage(tokens(), tokens(), tokens(), tokens(), tokens(), tokens(), chooser.random() < 0.8)  # noqa: PLR2004 - most report
        attempts.append(
            replace(
                an_attempt(number, admitted_s=START_S + second),
                queued_s=START_S + second - chooser.choice((0, chooser.uniform(0, 100))),
                scopes=scopes,
                usage=usage,
                model=chooser.choice(("sonnet", "opus")),
                rule=chooser.choice((None, "night", "1")),
                endpoint=chooser.choice(("messages", "responses")),
                state=chooser.choice(STATES),
                sent=chooser.random() < 0.9,  # noqa: PLR2004 - most are
                cost_micro_usd=chooser.choice((None, 0, chooser.randrange(5_000_000))),
            )
        )
    return attempts


def random_query(chooser: random.Random, *, hours: int = 4) -> UsageQuery:
    """Give a question about `random_attempts`."""

    def instant() -> float | None:
        hour = chooser.randrange(hours + 2) * HOUR_S
        return chooser.choice((None, START_S + hour, START_S + hour + chooser.uniform(0, HOUR_S)))

    wanted: dict[GroupBy, Sequence[str]] = {
        "account": ("main", "nobody"), "team": ("search", ""), "agent": ("a",), "session": ("s1",), "model": ("opus",),
        "rule": ("night",),
        "state": STATES, "hour": (_hour(START_S + HOUR_S),), "day": (_day(START_S),),
    }  # fmt: skip
    only = chooser.sample(sorted(wanted), chooser.choice((0, 0, 1, 2)))
    return UsageQuery(
        group_by=tuple(chooser.sample(FIELDS, chooser.choice((0, 1, 2, 3)))),
        since_s=instant(),
        until_s=instant(),
        only=tuple((field, chooser.choice(wanted[field])) for field in only),
    )


def expected_usage(attempts: Iterable[Attempt], query: UsageQuery) -> list[UsageGroup]:
    """Sum attempts by the plain meaning of a query: groups by value, None first; one group when none is asked for."""
    sums: dict[tuple[str | None, ...], dict[str, int]] = defaultdict(lambda: dict.fromkeys(_SUMS, 0))
    if not query.group_by:
        sums[()] = dict.fromkeys(_SUMS, 0)
    for attempt in attempts:
        late_enough = query.since_s is None or attempt.admitted_s >= query.since_s
        early_enough = query.until_s is None or attempt.admitted_s < query.until_s
        if late_enough and early_enough and all(_value(attempt, field) == value for field, value in query.only):
            group = sums[tuple(_value(attempt, field) for field in query.group_by)]
            for name, amount in _counted(attempt).items():
                group[name] += amount
    groups = sorted(sums.items(), key=lambda item: [(value is not None, value or "") for value in item[0]])
    return [UsageGroup(dict(zip(query.group_by, values, strict=True)), **figures) for values, figures in groups]


async def keep(store: LedgerStore, attempts: Iterable[Attempt]) -> None:
    """Begin attempts and bring each to its state."""
    for attempt in attempts:
        await store.begin(replace(attempt, state="in_flight"))
        if attempt.state != "in_flight":
            assert await store.finish(attempt)


async def an_attempt_in_flight_is_kept_in_every_field(open_store: OpenStore[LedgerStore]) -> None:
    """Also when the store is opened again."""
    attempts = [replace(a_full_attempt(), state="lost"), an_attempt(1, account=None)]
    async with open_store() as store:
        await keep(store, attempts)
        assert sorted(await store.in_flight(), key=lambda row: row.id, reverse=True) == attempts
    async with open_store() as store:
        assert sorted(await store.in_flight(), key=lambda row: row.id, reverse=True) == attempts


async def what_is_in_flight_comes_oldest_first(open_store: OpenStore[LedgerStore]) -> None:
    """By the time of admission, then by id; what is final is not among it, what is lost is; also from one on."""
    async with open_store() as store:
        for number, second in ((1, 30), (2, 10), (3, 20), (4, 0)):
            await store.begin(an_attempt(number, admitted_s=START_S + second))
        await store.finish(replace(an_attempt(4), state="cancelled"))
        await store.finish(replace(an_attempt(3, admitted_s=START_S + 20), state="lost"))
        await store.begin(an_attempt(5, admitted_s=START_S + 20))
        rows = await store.in_flight()
        assert [row.id for row in rows] == ["attempt-2", "attempt-3", "attempt-5", "attempt-1"]
        for place, row in enumerate(rows):
            assert await store.in_flight(row) == rows[place + 1 :]


async def an_attempt_is_finished_once(open_store: OpenStore[LedgerStore]) -> None:
    """The first outcome stays, whoever comes later and however often."""
    done = replace(an_attempt(), state="done", usage=Usage(90, output_tokens=40), cost_micro_usd=77)
    async with open_store() as store, open_store() as other:
        await store.begin(an_attempt())
        assert await store.finish(done)
        assert not await store.finish(done)
        assert not await other.finish(replace(done, state="failed", cost_micro_usd=5))
        assert not await other.finish(replace(done, state="lost"))
        assert await store.in_flight() == []
        for query in (UsageQuery(), UsageQuery(group_by=("session",))):
            (group,) = await other.usage(query)
            assert (group.requests, group.input_tokens, group.cost_micro_usd, group.failed) == (1, 90, 77, 0)


async def of_many_outcomes_at_once_one_counts(open_store: OpenStore[LedgerStore]) -> None:
    """Two processes may settle what a third one left behind."""
    done = replace(an_attempt(), state="done", cost_micro_usd=10)
    async with open_store() as store, open_store() as other:
        await store.begin(an_attempt())
        outcomes = await asyncio.gather(*(some.finish(done) for _ in range(5) for some in (store, other)))
        assert outcomes.count(True) == 1
        assert [group.requests for group in await store.usage(UsageQuery())] == [1]


async def a_lost_attempt_can_be_reconciled_once(open_store: OpenStore[LedgerStore]) -> None:
    """Until then it counts at its estimate."""
    lost = replace(an_attempt(), state="lost", cost_micro_usd=900)
    learned = replace(lost, state="reconciled", usage=Usage(80, output_tokens=5), cost_micro_usd=33)
    async with open_store() as store:
        await store.begin(an_attempt())
        assert await store.finish(lost)
        (group,) = await store.usage(UsageQuery())
        assert (group.input_tokens, group.cost_micro_usd, group.estimated) == (100, 900, 1)
        assert await store.finish(learned)
        assert not await store.finish(learned)
        (group,) = await store.usage(UsageQuery())
        assert (group.input_tokens, group.cost_micro_usd, group.estimated) == (80, 33, 0)


async def an_unknown_price_is_not_nothing(open_store: OpenStore[LedgerStore]) -> None:
    """It is counted apart from a price of 0, and so is usage that nobody reported."""
    async with open_store() as store:
        await keep(
            store,
            [
                replace(an_attempt(1), state="done", cost_micro_usd=None),
                replace(an_attempt(2), state="done", cost_micro_usd=0, usage=Usage()),
                replace(an_attempt(3), state="failed", cost_micro_usd=5, usage=Usage()),
            ],
        )
        (group,) = await store.usage(UsageQuery())
        assert (group.cost_micro_usd, group.unknown_cost, group.estimated, group.failed) == (5, 1, 1, 1)


async def what_never_left_is_no_request(open_store: OpenStore[LedgerStore]) -> None:
    """It is an attempt all the same, whether its failure or the provider told; in flight, it counts as sent."""
    never_left = replace(an_attempt(2), sent=False, usage=Usage())
    async with open_store() as store:
        await keep(
            store,
            [
                an_attempt(1),
                replace(never_left, state="failed"),
                replace(never_left, id="attempt-3", state="reconciled"),
                replace(an_attempt(4), state="done"),
            ],
        )
        for query in (UsageQuery(), UsageQuery(group_by=("session",)), UsageQuery(until_s=START_S + 11)):
            (group,) = await store.usage(query)
            assert (group.requests, group.attempts, group.failed) == (2, 4, 1)


async def an_attempt_cannot_be_begun_twice(open_store: OpenStore[LedgerStore]) -> None:
    """While it is in flight; and what never began cannot be finished."""
    async with open_store() as store:
        assert not await store.finish(replace(an_attempt(), state="done"))
        await store.begin(an_attempt())
        await _expect_refusal(store, an_attempt())
        await store.finish(replace(an_attempt(), state="lost"))
        await _expect_refusal(store, an_attempt())
        assert [group.requests for group in await store.usage(UsageQuery())] == [1]


async def the_rows_of_a_run_come_in_the_order_of_their_admission(open_store: OpenStore[LedgerStore]) -> None:
    """Whatever their state, in every field; those of other runs and of none do not."""
    own, other = Scopes("main", run="run-1"), Scopes(run="run-2")
    rows = [
        replace(a_full_attempt(), admitted_s=START_S + 1),
        replace(an_attempt(1, admitted_s=START_S + 2), scopes=own, state="lost"),
        replace(an_attempt(2, admitted_s=START_S + 3), scopes=own),
    ]
    async with open_store() as store:
        await keep(store, [*rows[::-1], an_attempt(3), replace(an_attempt(4), scopes=other)])
        assert await store.attempts("run-1") == rows
        assert await store.attempts("run-1", 2) == rows[1:]
        assert await store.attempts("none") == []
        assert await store.attempts(None, 3) == [rows[2], an_attempt(3), replace(an_attempt(4), scopes=other)]


async def an_empty_ledger_answers(open_store: OpenStore[LedgerStore]) -> None:
    """With zeros when no group is asked for, else with no group."""
    async with open_store() as store:
        assert await store.usage(UsageQuery()) == [UsageGroup({})]
        assert await store.usage(UsageQuery(group_by=("model", "hour"))) == []
        assert await store.in_flight() == []


async def hours_and_days_are_named_as_people_write_them(open_store: OpenStore[LedgerStore]) -> None:
    """In UTC; a name that is none is the caller's mistake."""
    at_s = datetime(2026, 11, 20, 19, 59, 59, tzinfo=UTC).timestamp()
    async with open_store() as store:
        await keep(store, [replace(an_attempt(n, admitted_s=at_s + n), state="done") for n in range(3)])
        by_hour = await store.usage(UsageQuery(group_by=("day", "hour")))
        assert [(group.group, group.requests) for group in by_hour] == [
            ({"day": "2026-11-20", "hour": "2026-11-20T19:00Z"}, 1),
            ({"day": "2026-11-20", "hour": "2026-11-20T20:00Z"}, 2),
        ]
        (only,) = await store.usage(UsageQuery(only=(("hour", "2026-11-20T20:00Z"),)))
        assert only.requests == 2  # noqa: PLR2004 - of the three
        wrong: list[tuple[GroupBy, str]] = [("hour", "20:00"), ("day", "2026-11-31"), ("day", "2026-1-2")]
        for field, text in wrong:
            try:
                await store.usage(UsageQuery(only=((field, text),)))
            except CallerError as error:
                assert text in str(error)  # noqa: PT017 - pytest is not a dependency of this package
            else:
                raise AssertionError(f"{text!r} was taken for a {field}")


async def sums_are_exact_however_they_are_asked_for(open_store: OpenStore[LedgerStore]) -> None:
    """By any fields, of whole hours or parts of them, as another store sees them."""
    chooser = random.Random(_SEED)  # noqa: S311 - any numbers do, as long as they are the same next time
    attempts = random_attempts(chooser, 400)
    async with open_store() as store, open_store() as other:
        await keep(store, attempts)
        for _ in range(150):
            query = random_query(chooser)
            answered, expected = await other.usage(query), expected_usage(attempts, query)
            assert answered == expected, f"{query}\nanswered {answered}\nexpected {expected}"


LEDGER_EXERCISES: tuple[Exercise[LedgerStore], ...] = (
    an_attempt_in_flight_is_kept_in_every_field,
    what_is_in_flight_comes_oldest_first,
    an_attempt_is_finished_once,
    of_many_outcomes_at_once_one_counts,
    a_lost_attempt_can_be_reconciled_once,
    an_unknown_price_is_not_nothing,
    what_never_left_is_no_request,
    an_attempt_cannot_be_begun_twice,
    the_rows_of_a_run_come_in_the_order_of_their_admission,
    an_empty_ledger_answers,
    hours_and_days_are_named_as_people_write_them,
    sums_are_exact_however_they_are_asked_for,
)


async def _expect_refusal(store: LedgerStore, attempt: Attempt) -> None:
    try:
        await store.begin(attempt)
    except CallerError as error:
        assert attempt.id in str(error)  # noqa: PT017 - pytest is not a dependency of this package
    else:
        raise AssertionError(f"{attempt.id} was begun twice")


def _value(attempt: Attempt, field: GroupBy) -> str | None:
    if field in ("model", "endpoint", "state"):
        return str(getattr(attempt, field))
    if field in ("hour", "day"):
        return _hour(attempt.admitted_s) if field == "hour" else _day(attempt.admitted_s)
    value: str | None = getattr(attempt if field in ("asked_model", "rule") else attempt.scopes, field)
    return value


def _counted(attempt: Attempt) -> dict[str, int]:
    usage, final = attempt.usage, attempt.state not in ("in_flight", "lost")
    return {
        "requests": 1 if attempt.sent else 0,
        "attempts": 1,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cache_read_tokens": usage.cache_read_tokens,
        "cache_write_tokens": usage.cache_write_5m_tokens + usage.cache_write_1h_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
        "cost_micro_usd": attempt.cost_micro_usd or 0,
        "unknown_cost": 1 if attempt.cost_micro_usd is None else 0,
        "estimated": 0 if final and usage.reported else 1,
        "failed": 1 if attempt.state == "failed" else 0,
        "refused": 1 if attempt.state == "refused" else 0,
        "wait_ms": round(attempt.wait_s * 1000),
    }


def _hour(instant_s: float) -> str:
    return datetime.fromtimestamp(instant_s, UTC).strftime("%Y-%m-%dT%H:00Z")


def _day(instant_s: float) -> str:
    return datetime.fromtimestamp(instant_s, UTC).strftime("%Y-%m-%d")
