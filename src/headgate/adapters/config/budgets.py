"""Budgets of a configuration that cannot be had: a child's above its parent's, each with its line.

One rule: which budgets disagree is the core's answer; here it gets its line and its words.
"""

from collections.abc import Iterable, Mapping, Sequence

from headgate.adapters.config.limits import ReadRule, limits_in_words
from headgate.adapters.config.settings import ConfiguredKey
from headgate.adapters.config.tables import Problems
from headgate.core.amounts import MICRO_USD_PER_USD
from headgate.core.budget_tree import conflicts

__all__ = ["note_conflicts", "parents_of_keys"]


def parents_of_keys(keys: Iterable[ConfiguredKey]) -> dict[str, list[str]]:
    """Give the scopes whose limits the calls of each key meet too."""
    return {
        f"key:{key.name}": [f"team:{key.team}"] * bool(key.team) + [f"tag:{name}={value}" for name, value in key.tags]
        for key in keys
    }


def note_conflicts(
    problems: Problems, found: Sequence[ReadRule], parents: Mapping[str, Iterable[str]], accounts: Sequence[str]
) -> None:
    """Note every budget that is above its parent's, naming both."""
    read_from = {id(read.rule): read for read in found}
    for child, above, allowed in conflicts([read.rule for read in found], parents, accounts):
        read = read_from[id(child)]
        bounds = " and ".join(
            f"{rule.scope} has {words}{problems.in_line(read_from[id(rule)].path)}"
            for rule in above
            for _scope, _models, words in limits_in_words([rule])
        )
        ((scope, _models, words),) = limits_in_words([child])
        is_money = child.template.dimension == "micro_usd"
        most = f"{allowed / MICRO_USD_PER_USD:g}" if is_money else f"{allowed:,}"
        problems.add(
            read.path,
            f"{read.word}: {scope} has {words}, which it can never use: {bounds}; expected at most {most}",
        )
