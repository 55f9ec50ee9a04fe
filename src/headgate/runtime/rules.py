"""Rules in force: the configured limits, those that keys carry, and those that were learned.

One rule: which limits a call meets depends on its scopes and model alone, so the answer is remembered (bounded); how
much a limit allows may change while calls wait for it, so that is asked when a hold is taken (`in_force`).
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence

from headgate.core.adaptive import model_class
from headgate.core.limits import Limit
from headgate.core.scopes import LimitRule, Scopes, level_name, limits_for

MOST_REMEMBERED = 20_000


class Rules:
    """The limits of one process."""

    def __init__(self, configured: Sequence[LimitRule]) -> None:
        """Begin with the configured ones."""
        self._configured = tuple(configured)
        self._of_keys: dict[str, tuple[LimitRule, ...]] = {}
        self._learned: Mapping[str, Limit] = {}
        self._unlearned: set[str] = set()  # what was learned, is in force no more and may still stand in tickets
        self.on_learned: Callable[[Mapping[str, Limit], Mapping[str, Limit]], None] = lambda _before, _after: None
        """Told what was in force and what is now, each time that something was learned."""
        self._remembered: OrderedDict[tuple[Scopes, str], tuple[Limit, ...]] = OrderedDict()

    def limits_for(self, scopes: Scopes, model: str) -> tuple[Limit, ...]:
        """Give every limit that a call of these scopes for this model meets; a learned one as it was when it came."""
        asked = (scopes, model)
        found = self._remembered.get(asked)
        if found is None:
            found = limits_for((*self._configured, *self._of_keys.get(scopes.key or "", ())), scopes.path(), model)
            if self._learned and scopes.account is not None:
                found += self._learned_for(scopes.account, model, {limit.name for limit in found})
            self._remembered[asked] = found
            if len(self._remembered) > MOST_REMEMBERED:
                self._remembered.popitem(last=False)
        return found

    def in_force(self, limits: Sequence[Limit]) -> Sequence[Limit]:
        """Give limits as they are now: what was learned since a call met them lowers or closes them."""
        learned = self._learned
        return [learned.get(limit.name, limit) for limit in limits] if learned else limits

    def met_now(self, limits: Sequence[Limit]) -> Sequence[Limit]:
        """Give limits as they are now, without those that were learned and are in force no more."""
        learned, unlearned = self._learned, self._unlearned
        if not unlearned:
            return [learned.get(limit.name, limit) for limit in limits] if learned else limits
        return [learned.get(limit.name, limit) for limit in limits if limit.name not in unlearned]

    def learn(self, limits: Mapping[str, Limit]) -> None:
        """Let these learned limits be in force, by the names of their levels: configured ones as far as they go now."""
        if limits.keys() != self._learned.keys():
            self._remembered.clear()
            gone = (name for name in self._learned.keys() - limits.keys() if self.configured(name) is None)
            self._unlearned = (self._unlearned | set(gone)) - limits.keys()
            if len(self._unlearned) > MOST_REMEMBERED:
                self._unlearned.clear()
        before, self._learned = self._learned, limits
        self.on_learned(before, limits)

    def set_key(self, name: str, rules: Sequence[LimitRule]) -> None:
        """Let a key carry these limits from now on."""
        if self._of_keys.get(name, ()) != tuple(rules):
            self._of_keys[name] = tuple(rules)
            self._remembered.clear()

    def named(self, level_names: Iterable[str]) -> tuple[Limit, ...]:
        """Give the limits that keep these levels; levels that no rule keeps any more are left out."""
        found = {name: self.configured(name) or self._learned.get(name) for name in level_names}
        return tuple(limit for limit in found.values() if limit is not None)

    def configured(self, wanted: str) -> Limit | None:
        """Give the limit that keeps a level, as it is configured or as a key carries it: of several rules the last.

        So it does for a call (`scopes.limits_for`): a level has one limit, whoever asks.
        """
        scope = wanted.split(" ", 1)[0]
        every = (*self._configured, *(rule for rules in self._of_keys.values() for rule in rules))
        for rule in reversed(every):
            limit = rule.bind((scope,), rule.template.models or "")
            if limit is not None and level_name(scope, rule.template) == wanted:
                return limit
        return None

    def standing(self) -> tuple[Limit, ...]:
        """Give the limits whose scope is no pattern: they are there before anything was used."""
        every = (*self._configured, *(rule for rules in self._of_keys.values() for rule in rules))
        plain = [
            (rule, rule.bind((rule.scope,), rule.template.models or "")) for rule in every if "*" not in rule.scope
        ]
        return tuple(limit for _rule, limit in plain if limit is not None)

    def _learned_for(self, account: str, model: str, met: set[str]) -> tuple[Limit, ...]:
        scope, models = f"account:{account}", model_class(model)
        return tuple(
            limit
            for name, limit in self._learned.items()
            if name not in met and limit.scope == scope and limit.models in (None, models)
        )
