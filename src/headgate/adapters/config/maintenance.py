"""Maintenance windows as people write them: `[[maintenance]]` with cron, duration, timezone, scope, models and action.

One rule: what was read can be kept: the expression names instants, and a window ends before the next begins. What a
window does to calls is not known here.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, tzinfo

from headgate.adapters.config.limits import read_models, read_timezone, scope_among
from headgate.adapters.config.settings import ConfiguredMaintenance, MaintenanceAction
from headgate.adapters.config.tables import Reader, Table, Unfit, choice
from headgate.adapters.cron import CronError, CronSpans

__all__ = ["read_maintenance"]

LEAST_DURATION_S = 60
MOST_DURATION_S = 7 * 86_400

_ACTIONS: Mapping[str, MaintenanceAction] = {"hold": "hold", "refuse": "refuse"}
_DURATION = re.compile(r"(?:(\d{1,4})d)?(?:(\d{1,4})h)?(?:(\d{1,5})m)?")
_UTC: tzinfo = UTC


def read_maintenance(table: Table, accounts: Sequence[str]) -> ConfiguredMaintenance | None:
    """Read one entry, whose scope may be one of these accounts; None where it cannot be used, which is noted."""
    cron = table.take("cron", _text, "", required=True)
    duration_s = table.take("duration", _duration, 0, required=True)
    zone = table.take("timezone", read_timezone, _UTC)
    scope = table.take("scope", _scope(accounts), "*")
    models = read_models(table)
    action: MaintenanceAction = table.take("action", choice(_ACTIONS), "hold")
    table.close()
    if not cron or not duration_s:
        return None
    try:
        return ConfiguredMaintenance(cron, CronSpans(cron, zone, duration_s), scope, models, action)
    except CronError as error:
        table.problem("cron", f'"{cron}": {error}')
        return None


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.isascii() or not value.isprintable() or not value.strip():
        raise Unfit('expected a cron expression such as "30 2 * * sun"')
    return value.strip()


def _duration(value: object) -> int:
    found = _DURATION.fullmatch(value) if isinstance(value, str) and value else None
    if found is None:
        raise Unfit('expected a duration such as "90m", "2h" or "1d12h"')
    days, hours, minutes = (int(part or 0) for part in found.groups())
    duration_s = days * 86_400 + hours * 3_600 + minutes * 60
    if not LEAST_DURATION_S <= duration_s <= MOST_DURATION_S:
        raise Unfit('expected at least "1m" and at most "7d"')
    return duration_s


def _scope(accounts: Sequence[str]) -> Reader[str]:
    among = scope_among(accounts)
    return lambda value: "*" if value == "*" else among(value)
