"""Budgets of a configuration that cannot be had: a child's above its parent's, each with its line.

One rule: which budgets disagree is the core's answer; here it gets its line and its words.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from headgate.adapters.config.limits import ReadRule, limits_in_words
from headgate.adapters.config.settings import Config, ConfiguredKey
from headgate.adapters.config.tables import Problems
from headgate.core.amounts import MICRO_USD_PER_USD
from headgate.core.budget_tree import Conflict, conflicts
from headgate.core.scopes import LimitRule

__all__ = ["above_its_parents", "note_conflicts", "parents_of_keys"]


def parents_of_keys(keys: Iterable[ConfiguredKey]) -> dict[str, list[str]]:
    """Give the scopes whose limits the calls of each key meet too; what is said of one twice adds up."""
    parents: dict[str, list[str]] = {}
    for key in keys:
        team = [f"team:{key.team}"] if key.team else []
        tags = [f"tag:{name}={value}" for name, value in key.tags]
        parents.setdefault(f"key:{key.name}", []).extend((*team, *tags))
    return parents


def note_conflicts(
    problems: Problems, found: Sequence[ReadRule], parents: Mapping[str, Iterable[str]], accounts: Sequence[str]
) -> None:
    """Note every budget that is above its parent's, naming both."""
    read_from = {id(read.rule): read for read in found}
    for conflict in conflicts([read.rule for read in found], parents, accounts):
        read = read_from[id(conflict.child)]
        told = _in_words(conflict, lambda rule: problems.in_line(read_from[id(rule)].path))
        problems.add(read.path, f"{read.word}: {told}")


def above_its_parents(config: Config, key: ConfiguredKey, rules: Sequence[LimitRule]) -> list[str]:
    """Say which of the limits that a key is to carry are above its parents', in words; none if all can be had."""
    own = {id(rule) for rule in rules}
    found = conflicts(
        [*config.limits, *rules],
        parents_of_keys([*config.keys, key]),
        [each.account.name for each in config.accounts],
    )
    return [_in_words(conflict, lambda _rule: "") for conflict in found if id(conflict.child) in own]


def _in_words(conflict: Conflict, where: Callable[[LimitRule], str]) -> str:
    child, above, allowed = conflict
    bounds = " and ".join(
        f"{rule.scope} has {words}{where(rule)}" for rule in above for _scope, _models, words in limits_in_words([rule])
    )
    ((scope, _models, words),) = limits_in_words([child])
    is_money = child.template.dimension == "micro_usd"
    most = f"{allowed / MICRO_USD_PER_USD:g}" if is_money else f"{allowed:,}"
    return f"{scope} has {words}, which it can never use: {bounds}; expected at most {most}"
