"""How attempts are written as rows, and read again.

One rule: the columns stand in one place, in one order. Sums and transactions are `ledger`'s.
"""

from typing import Any

import msgspec

from headgate.adapters.figures import hour_of, wait_ms
from headgate.core.ledger import Attempt
from headgate.core.scopes import Scopes
from headgate.core.usage import Usage

COLUMNS = (
    "id",
    "call",
    "attempt",
    "owner",
    "account",
    "key",
    "team",
    "run",
    "agent",
    "session",
    "parent",
    "tags",
    "endpoint",
    "model",
    "queued_s",
    "admitted_s",
    "input_tokens",
    "cache_read_tokens",
    "cache_write_5m_tokens",
    "cache_write_1h_tokens",
    "output_tokens",
    "reasoning_tokens",
    "reported",
    "held_micro_usd",
    "cost_micro_usd",
    "price_version",
    "state",
    "model_served",
    "status",
    "error_type",
    "provider_request",
    "first_byte_s",
    "done_s",
    "sent",
    "claimed",
    "asked_model",
    "rule",
    "saved_micro_usd",
    "shared_with",
)
DERIVED = ("hour", "wait_ms")
"""Columns that follow from the others, kept so that sums of rows are the same whole numbers as the roll-ups'."""

OUTCOME = (
    "input_tokens",
    "cache_read_tokens",
    "cache_write_5m_tokens",
    "cache_write_1h_tokens",
    "output_tokens",
    "reasoning_tokens",
    "reported",
    "cost_micro_usd",
    "price_version",
    "state",
    "model_served",
    "status",
    "error_type",
    "provider_request",
    "first_byte_s",
    "done_s",
    "sent",
)
"""What is not known before a call has ended; all else stays as it was when the call began."""

_SCOPES = slice(COLUMNS.index("account"), COLUMNS.index("tags"))
_USAGE = slice(COLUMNS.index("input_tokens"), COLUMNS.index("reported"))


def to_row(attempt: Attempt) -> tuple[object, ...]:
    """Give the values of COLUMNS and then of DERIVED."""
    *scopes, tags, claimed = attempt.scopes
    *usage, reported = attempt.usage
    return (
        attempt.id,
        attempt.call,
        attempt.attempt,
        attempt.owner,
        *scopes,
        msgspec.json.encode(tags).decode(),
        attempt.endpoint,
        attempt.model,
        attempt.queued_s,
        attempt.admitted_s,
        *usage,
        int(reported),
        attempt.held_micro_usd,
        attempt.cost_micro_usd,
        attempt.price_version,
        attempt.state,
        attempt.model_served,
        attempt.status,
        attempt.error_type,
        attempt.provider_request,
        attempt.first_byte_s,
        attempt.done_s,
        int(attempt.sent),
        msgspec.json.encode(claimed).decode(),
        attempt.asked_model,
        attempt.rule,
        attempt.saved_micro_usd,
        attempt.shared_with,
        hour_of(attempt.admitted_s),
        wait_ms(attempt),
    )


def to_outcome(attempt: Attempt) -> tuple[object, ...]:
    """Give the values of OUTCOME."""
    return (
        *attempt.usage,  # `reported` is its last
        attempt.cost_micro_usd,
        attempt.price_version,
        attempt.state,
        attempt.model_served,
        attempt.status,
        attempt.error_type,
        attempt.provider_request,
        attempt.first_byte_s,
        attempt.done_s,
        attempt.sent,
    )


def to_attempt(row: tuple[Any, ...]) -> Attempt:
    """Give the attempt of the values of COLUMNS."""
    named = dict(zip(COLUMNS, row, strict=True))
    tags = tuple((name, value) for name, value in msgspec.json.decode(named["tags"]))
    claimed = tuple(msgspec.json.decode(named["claimed"]))
    for name in (*COLUMNS[_SCOPES], "tags", "claimed", *COLUMNS[_USAGE], "reported"):
        del named[name]
    named["sent"] = bool(named["sent"])
    return Attempt(
        **named,
        scopes=Scopes._make((*row[_SCOPES], tags, claimed)),
        usage=Usage._make((*row[_USAGE], bool(row[_USAGE.stop]))),
    )
