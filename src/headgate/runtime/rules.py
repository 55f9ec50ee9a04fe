"""Rules in force: the configured limits, and those that keys carry.

One rule: which limits a call meets depends on its scopes and model alone, so the answer is remembered (bounded).
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from headgate.core.limits import Limit
from headgate.core.scopes import LimitRule, Scopes, level_name, limits_for

MOST_REMEMBERED = 20_000


class Rules:
    """The limits of one process."""

    def __init__(self, configured: Sequence[LimitRule]) -> None:
        """Begin with the configured ones."""
        self._configured = tuple(configured)
        self._of_keys: dict[str, tuple[LimitRule, ...]] = {}
        self._remembered: OrderedDict[tuple[Scopes, str], tuple[Limit, ...]] = OrderedDict()

    def limits_for(self, scopes: Scopes, model: str) -> tuple[Limit, ...]:
        """Give every limit that a call of these scopes for this model meets."""
        asked = (scopes, model)
        found = self._remembered.get(asked)
        if found is None:
            found = limits_for((*self._configured, *self._of_keys.get(scopes.key or "", ())), scopes.path(), model)
            self._remembered[asked] = found
            if len(self._remembered) > MOST_REMEMBERED:
                self._remembered.popitem(last=False)
        return found

    def set_key(self, name: str, rules: Sequence[LimitRule]) -> None:
        """Let a key carry these limits from now on."""
        if self._of_keys.get(name, ()) != tuple(rules):
            self._of_keys[name] = tuple(rules)
            self._remembered.clear()

    def named(self, level_names: Iterable[str]) -> tuple[Limit, ...]:
        """Give the limits that keep these levels; levels that no rule keeps any more are left out."""
        every = (*self._configured, *(rule for rules in self._of_keys.values() for rule in rules))
        found: dict[str, Limit] = {}
        for name in level_names:
            scope = name.split(" ", 1)[0]
            for rule in every:
                limit = rule.bind((scope,), rule.template.models or "")
                if limit is not None and level_name(scope, rule.template) == name:
                    found[name] = limit
                    break
        return tuple(found.values())

    def standing(self) -> tuple[Limit, ...]:
        """Give the limits whose scope is no pattern: they are there before anything was used."""
        every = (*self._configured, *(rule for rules in self._of_keys.values() for rule in rules))
        plain = [
            (rule, rule.bind((rule.scope,), rule.template.models or "")) for rule in every if "*" not in rule.scope
        ]
        return tuple(limit for _rule, limit in plain if limit is not None)
