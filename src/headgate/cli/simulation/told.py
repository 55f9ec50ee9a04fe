"""Words for what went wrong and what was learned, the same in the table, on the page and in the picture.

One rule: a limit is named as everywhere else; what has no level is named as it is.
"""

from collections.abc import Mapping

from headgate.cli.wording import level_text, limit_text
from headgate.core.amounts import DIMENSIONS
from headgate.sim.figures import LearnedLimit
from headgate.sim.provider import Truth

__all__ = ["failures_told", "is_refilled", "learned_text", "limit_told", "truth_told"]

_LEVEL_WORDS = 4


def limit_told(name: str) -> str:
    """Name a limit by its level's name, or what else refused calls by its own."""
    return level_text(name) if len(name.split(" ", _LEVEL_WORDS - 1)) == _LEVEL_WORDS else name


def is_refilled(name: str) -> bool:
    """Whether a limit, by its level's name, comes back by itself or when calls end: nothing of it is ever spent."""
    manner = name.rpartition(" ")[2]
    return manner == "gauge" or manner.startswith("rate-") or limit_told(name) == name


def failures_told(failures: Mapping[str, int]) -> str:
    """Write how often what went wrong."""
    return ", ".join(f"{count:,} x {kind}" for kind, count in failures.items()) or "-"


def learned_text(learned: LearnedLimit) -> str:
    """Name what was learned of."""
    scope, models = f"account:{learned.account}", learned.models or None
    if learned.what in DIMENSIONS and learned.what != "slots":
        return f"{limit_text(scope, models, learned.what)}/min"
    return f"{scope} {learned.what}"


def truth_told(truth: Truth) -> str:
    """Say what providers are like that are not as configured; empty where they are."""
    parts = []
    for account, terms in truth.terms.items():
        of = "" if account == "*" else f" of {account}"
        if terms.limits_scale != 1:
            parts.append(f"{terms.limits_scale:g} times its limits enforced{of}")
        parts += [
            f"{amount:,} {limit_text('', None, what).strip()}/min{of}" for what, amount in terms.per_minute.items()
        ]
    for outage in truth.outages:
        where = "" if outage.account is None else f" of {outage.account}"
        parts.append(f"outage ({outage.kind}){where} from {outage.from_s:g} s for {outage.for_s:g} s")
    for fault in truth.faults:
        where = "" if fault.account is None else f" of {fault.account}"
        parts.append(f"{fault.share * 100:g} % of calls fail ({fault.kind}){where}")
    if not truth.tells:
        parts.append("no word of limits in answers")
    return ", ".join(parts)
