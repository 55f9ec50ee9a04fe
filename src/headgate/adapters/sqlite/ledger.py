"""The ledger in SQLite: one row per attempt, and sums by the hour.

One rule: an attempt enters the roll-ups in the transaction that makes its row final, and never again; so a sum is the
roll-ups of whole hours, plus the rows of the hours that are cut, plus the rows that are not final yet.

Not in the roll-ups, and therefore read from the rows: what is in flight or lost; sessions, which may be as many as
calls; the agent's parent and the tags.
"""

import asyncio
import math
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from headgate.adapters.figures import (
    HOUR_S,
    HOURS_PER_DAY,
    NO_FIGURES,
    OPEN_STATES,
    Figures,
    add,
    day_text,
    figures_of,
    group_of,
    hour_of,
    hour_text,
    hours_named,
    in_order,
)
from headgate.adapters.refusals import attempt_was_begun
from headgate.adapters.sqlite.database import Database, Raised
from headgate.adapters.sqlite.rows import COLUMNS, DERIVED, OUTCOME, to_attempt, to_outcome, to_row
from headgate.core.ledger import Attempt, GroupBy, UsageGroup, UsageQuery

MOST_IN_FLIGHT = 10_000
"""What `in_flight` gives at most."""

_ABSENT = b""
"""A scope that an attempt does not have, in the roll-ups (see `schema`)."""

_OPEN = "state IN ('in_flight', 'lost')"  # word for word as in the partial index
_ALL = (*COLUMNS, *DERIVED)

_MARKS = ", ".join("?" * len(_ALL))
_BEGIN = f"INSERT INTO attempts ({', '.join(_ALL)}) VALUES ({_MARKS}) ON CONFLICT (id) WHERE {_OPEN} DO NOTHING"  # noqa: S608 - our own columns
_FINISH = f"UPDATE attempts SET {', '.join(f'{name} = ?' for name in OUTCOME)} WHERE id = ? AND {_OPEN}"  # noqa: S608 - our own columns
MOST_ATTEMPTS = 1_000_000
_NEWEST = f"SELECT {', '.join(COLUMNS)} FROM attempts ORDER BY admitted_s DESC, seq DESC LIMIT ?"  # noqa: S608 - our own columns
_OF_RUN = _NEWEST.replace(" ORDER", " WHERE run = ? ORDER")
_IN_FLIGHT = f"""
    SELECT {", ".join(COLUMNS)} FROM attempts INDEXED BY attempts_open WHERE {_OPEN} AND (admitted_s, id) > (?, ?)
    ORDER BY admitted_s, id LIMIT {MOST_IN_FLIGHT}
"""  # noqa: S608 - our own columns


@dataclass(frozen=True, slots=True)
class _RollUp:
    """A table of sums by the hour, and the fields it can be asked for, beside hour and day."""

    table: str
    fields: tuple[GroupBy, ...]

    def upsert(self) -> str:
        keys = ("hour", *self.fields)
        columns = (*keys, *Figures._fields)
        sums = ", ".join(f"{name} = {name} + excluded.{name}" for name in Figures._fields)
        return (
            f"INSERT INTO {self.table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))}) "  # noqa: S608 - our own columns
            f"ON CONFLICT ({', '.join(keys)}) DO UPDATE SET {sums}"
        )


# The first grows with what an owner configures, not with traffic: a year of any number of calls is some 100,000 rows.
# The second grows with agents at work (each agent of a fleet has a key of its own): one row for an agent's hour.
_BY_HOUR = _RollUp("usage_by_hour", ("account", "team", "model", "endpoint", "state"))
_BY_AGENT_HOUR = _RollUp(
    "usage_by_agent_hour", ("account", "key", "team", "run", "agent", "model", "endpoint", "state")
)
_ROLL_UPS = (_BY_HOUR, _BY_AGENT_HOUR)
_ADD_TO_HOUR, _ADD_TO_AGENT_HOUR = (roll_up.upsert() for roll_up in _ROLL_UPS)

_Key = tuple[int | str | bytes, ...]
"""The hour, and the fields of a roll-up."""


# In the order of Figures.
_OF_ROWS = f"""
    sum(sent), sum(input_tokens), sum(output_tokens), sum(cache_read_tokens),
    sum(cache_write_5m_tokens + cache_write_1h_tokens), sum(reasoning_tokens), sum(coalesce(cost_micro_usd, 0)),
    sum(cost_micro_usd IS NULL), sum({_OPEN} OR NOT reported), sum(state = 'failed'), sum(wait_ms), count(*),
    sum(state = 'refused')
"""
_OF_ROLL_UPS = ", ".join(f"sum({name})" for name in Figures._fields)


class SqliteLedgerStore:
    """A `LedgerStore` on a database; also the buffer of its roll-ups, each row of which is written once a commit."""

    def __init__(self, database: Database) -> None:
        """Keep rows in `database`."""
        self._database = database
        self._ended: defaultdict[_Key, list[Figures]] = defaultdict(list)
        database.join(self)

    def begin(self, attempt: Attempt, when: Callable[[], bool] | None = None) -> asyncio.Future[bool]:
        """Keep an attempt in flight, or give False if it is not to be; a CallerError if its id was begun before."""
        return self._database.run(partial(_begin, attempt, when))

    def finish(self, attempt: Attempt) -> asyncio.Future[bool]:
        """Complete the row of an attempt in flight (or lost) by its outcome; False if it was final already."""
        return self._database.run(partial(self._finish, attempt))

    async def in_flight(self, after: Attempt | None = None) -> list[Attempt]:
        """Give attempts that are in flight or lost, oldest first, at most 10,000; those `after` one if it is given."""
        place = (-math.inf, "") if after is None else (after.admitted_s, after.id)
        rows = await self._database.read(lambda connection: connection.execute(_IN_FLIGHT, place).fetchall())
        return [to_attempt(row) for row in rows]

    async def usage(self, query: UsageQuery) -> list[UsageGroup]:
        """Sum rows, in a thread of its own; without `group_by` there is always one group."""
        parts = list(_parts(query))  # here, so that what is asked wrongly is told without a thread
        return await self._database.read_aside(partial(_sum, query.group_by, parts))

    async def attempts(self, run: str | None, most: int = MOST_ATTEMPTS) -> list[Attempt]:
        """Give the newest rows of a run (or of all) in the order of their admission; read in a thread of its own."""
        query, values = (_NEWEST, (most,)) if run is None else (_OF_RUN, (run, most))
        newest = await self._database.read_aside(
            lambda connection: [to_attempt(row) for row in connection.execute(query, values)]
        )
        return newest[::-1]

    def _finish(self, attempt: Attempt, connection: sqlite3.Connection) -> bool:
        if not connection.execute(_FINISH, (*to_outcome(attempt), attempt.id)).rowcount:
            return False
        if attempt.state not in OPEN_STATES:
            account, key, team, run, agent = attempt.scopes[:5]
            self._ended[
                hour_of(attempt.admitted_s),
                _ABSENT if account is None else account,
                _ABSENT if key is None else key,
                _ABSENT if team is None else team,
                _ABSENT if run is None else run,
                _ABSENT if agent is None else agent,
                attempt.model,
                attempt.endpoint,
                attempt.state,
            ].append(figures_of(attempt))
        return True

    # --- as the buffer of the database's transactions

    def start(self, connection: sqlite3.Connection) -> None:
        """Do nothing: there is nothing to know before."""

    def write(self, connection: sqlite3.Connection) -> None:
        """Add the attempts that ended in this transaction to the sums, those of one row together."""
        if not self._ended:
            return
        by_hour: defaultdict[_Key, list[Figures]] = defaultdict(list)
        for place, figures in self._ended.items():
            hour, account, _key, team, _run, _agent, *rest = place
            sums = figures[0] if len(figures) == 1 else tuple(map(sum, zip(*figures, strict=True)))
            by_hour[hour, account, team, *rest] += figures
            connection.execute(_ADD_TO_AGENT_HOUR, (*place, *sums))
        for place, figures in by_hour.items():
            sums = figures[0] if len(figures) == 1 else tuple(map(sum, zip(*figures, strict=True)))
            connection.execute(_ADD_TO_HOUR, (*place, *sums))
        self._ended.clear()

    def undo(self) -> None:
        """Forget the attempts that ended in a transaction that was rolled back."""
        self._ended.clear()


@dataclass(frozen=True, slots=True)
class _Part:
    """One query of the few that make a sum."""

    source: str
    figures: str
    conditions: tuple[str, ...]
    values: tuple[object, ...]


def _begin(attempt: Attempt, when: Callable[[], bool] | None, connection: sqlite3.Connection) -> bool | Raised:
    if when is not None and not when():
        return False
    if not connection.execute(_BEGIN, to_row(attempt)).rowcount:
        return Raised(attempt_was_begun(attempt.id))
    return True


def _parts(query: UsageQuery) -> Iterator[_Part]:
    since_s, until_s = _bounds(query)
    only = [(field, value) for field, value in query.only if field not in ("hour", "day")]
    filters, wanted = tuple(f"{field} = ?" for field, _value in only), tuple(value for _field, value in only)

    def rows(since_s: float | None, until_s: float | None) -> _Part:
        in_time, bounds = _between("admitted_s", since_s, until_s)
        return _Part("attempts", _OF_ROWS, (f"NOT ({_OPEN})", *filters, *in_time), (*wanted, *bounds))

    in_time, bounds = _between("admitted_s", since_s, until_s)
    # Named, because without statistics the planner would read all rows of the time instead.
    yield _Part("attempts INDEXED BY attempts_open", _OF_ROWS, (_OPEN, *filters, *in_time), (*wanted, *bounds))
    asked = {*query.group_by, *(field for field, _value in only)} - {"hour", "day"}
    roll_up = next((roll_up for roll_up in _ROLL_UPS if asked.issubset(roll_up.fields)), None)
    first = None if since_s is None else hour_of(since_s) + (hour_of(since_s) * HOUR_S < since_s)
    last = None if until_s is None else hour_of(until_s)
    if roll_up is None or (first is not None and last is not None and first >= last):
        yield rows(since_s, until_s)
        return
    in_hours, hours = _between("hour", first, last)
    yield _Part(roll_up.table, _OF_ROLL_UPS, (*filters, *in_hours), (*wanted, *hours))
    if since_s is not None and first is not None and since_s < first * HOUR_S:
        yield rows(since_s, first * HOUR_S)
    if until_s is not None and last is not None and last * HOUR_S < until_s:
        yield rows(last * HOUR_S, until_s)


def _bounds(query: UsageQuery) -> tuple[float | None, float | None]:
    """Give the time that is asked for, with the hours and days that `only` names."""
    since_s, until_s = query.since_s, query.until_s
    for field, value in query.only:
        if field in ("hour", "day"):
            first, last = hours_named(field, value)
            since_s = first * HOUR_S if since_s is None else max(since_s, first * HOUR_S)
            until_s = last * HOUR_S if until_s is None else min(until_s, last * HOUR_S)
    return since_s, until_s


def _between(column: str, first: float | None, last: float | None) -> tuple[tuple[str, ...], tuple[float, ...]]:
    conditions = [(f"{column} >= ?", first), (f"{column} < ?", last)]
    kept = [(condition, value) for condition, value in conditions if value is not None]
    return tuple(condition for condition, _value in kept), tuple(value for _condition, value in kept)


def _sum(group_by: tuple[GroupBy, ...], parts: list[_Part], connection: sqlite3.Connection) -> list[UsageGroup]:
    sums: dict[tuple[str | None, ...], Figures] = {} if group_by else {(): NO_FIGURES}
    columns = [f"hour / {HOURS_PER_DAY}" if field == "day" else field for field in group_by]
    for part in parts:
        select = f"SELECT {', '.join([*columns, part.figures])} FROM {part.source}"  # noqa: S608 - our own words; values are bound
        where = " AND ".join(part.conditions) or "TRUE"
        numbers = ", ".join(str(number) for number in range(1, len(columns) + 1))
        grouped = f" GROUP BY {numbers}" if columns else " HAVING count(*) > 0"
        for row in connection.execute(f"{select} WHERE {where}{grouped}", part.values):
            values = tuple(_text(field, value) for field, value in zip(group_by, row, strict=False))
            sums[values] = add(sums.get(values, NO_FIGURES), Figures(*row[len(columns) :]))
    return in_order([group_of(values, group_by, figures) for values, figures in sums.items()])


def _text(field: GroupBy, value: int | str | bytes | None) -> str | None:
    if value is None or isinstance(value, bytes):
        return None
    if isinstance(value, int):
        return hour_text(value) if field == "hour" else day_text(value)
    return value
