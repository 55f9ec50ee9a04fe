"""Health: a circuit breaker for each account and model, and one for the account's key.

One rule: it counts what the provider's side says, and nothing else closes a circuit; when one opens or closes is the
core's (`core.pool.Breaker`). An account that needs its owner is told to the log once, until it has served again.
"""

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import replace

from headgate.core.pool import CLOSED, Breaker
from headgate.core.retries import Failure, is_key_refused, is_of_provider, is_stalled, needs_owner
from headgate.ports import Clock

log = logging.getLogger("headgate.accounts")

MOST_CIRCUITS = 10_000

ALL_MODELS = ""


class Health:
    """The circuits of one process's accounts."""

    def __init__(self, clock: Clock) -> None:
        """Begin with all closed."""
        self._clock = clock
        self._circuits: OrderedDict[tuple[str, str], Breaker] = OrderedDict()
        self.stalled: Counter[str] = Counter()
        """Answers that fell silent before their end, by account."""
        self.on_news: Callable[[str], None] = lambda _account: None
        """Told of which account a circuit has opened or closed, or may be tried again: calls that wait may look."""
        self.on_changed: Callable[[str, str, Breaker | None], None] = lambda _account, _model, _circuit: None
        """Told of each circuit that has opened or (None) closed, for other processes to hear."""

    def circuit(self, account: str, model: str) -> Breaker:
        """Give the circuit that decides about an account's calls for a model: the key's, unless that is closed."""
        if not self._circuits:
            return CLOSED
        of_key = self._circuits.get((account, ALL_MODELS), CLOSED)
        return of_key if of_key is not CLOSED else self._circuits.get((account, model), CLOSED)

    def tried(self, account: str, model: str) -> None:
        """Let a call go: in a half open circuit it is the one that tries."""
        self._each(account, model, lambda circuit: circuit.tried(self._clock.now_s()))

    def gave_up(self, account: str, model: str) -> None:
        """Remember that a call ended without a word of the provider's side."""
        if self._each(account, model, Breaker.gave_up):
            self.on_news(account)

    def succeeded(self, account: str, model: str) -> None:
        """Close what a good answer closes."""
        if not self._circuits:
            return
        before = [self._circuits.pop((account, each), None) for each in (ALL_MODELS, model)]
        found = [each for each in before if each is not None]
        if any(each.is_out for each in found):
            log.warning("account %s serves again", account)
        if any(each.open_until_s is not None for each in found):
            for each, circuit in zip((ALL_MODELS, model), before, strict=True):
                if circuit is not None:
                    self.on_changed(account, each, None)
            self.on_news(account)

    def failed(self, account: str, model: str, failure: Failure) -> None:
        """Count a failure; only the provider's side makes an account ill."""
        if is_stalled(failure):
            self.stalled[account] += 1
        if not is_of_provider(failure):
            self.gave_up(account, model)
            return
        key = (account, ALL_MODELS if is_key_refused(failure) else model)
        before = self._circuits.get(key, CLOSED)
        why = failure.error_type if failure.status is None else f"{failure.status} {failure.error_type}"
        is_out = needs_owner(failure)
        now_s = self._clock.now_s()
        self._circuits[key] = after = before.failed(now_s, failure.retry_after_s, why=why, is_out=is_out)
        self._circuits.move_to_end(key)
        if len(self._circuits) > MOST_CIRCUITS:
            self._circuits.popitem(last=False)
        if after.open_until_s != before.open_until_s:
            self.on_changed(*key, after)
            self.on_news(account)
        if is_out and not before.is_out:
            what = "refuses its key" if is_key_refused(failure) else f"does not let it use {model}"
            log.error(
                "account %s: its provider %s (%s); it is taken out, and tried again every %.0f s; see its api_key in "
                "the configuration, and its credit and permissions at the provider",
                account,
                what,
                why,
                after.pause_s,
            )
        elif after.state(now_s) == "open" and before.state(now_s) == "closed":
            level = logging.INFO if failure.kind == "limited" else logging.WARNING
            said = "account %s: calls for %s go elsewhere for %.3g s where they can, after %s"
            log.log(level, said, account, model, after.pause_s, why)

    def hear(self, account: str, model: str, circuit: Breaker | None) -> None:
        """Take up how another process found a circuit: open, or (None) closed.

        Which call tries it is each process's own: one that died would let no other try.
        """
        if circuit is None:
            self._circuits.pop((account, model), None)
        else:
            self._circuits[account, model] = replace(circuit, probing=False)
            self._circuits.move_to_end((account, model))
            if len(self._circuits) > MOST_CIRCUITS:
                self._circuits.popitem(last=False)
        self.on_news(account)

    def open_circuits(self) -> list[tuple[str, str, Breaker]]:
        """Give the circuits that are not closed, by account and model."""
        return [(*key, circuit) for key, circuit in self._circuits.items() if circuit.open_until_s is not None]

    def circuits_of(self, account: str) -> list[tuple[str, Breaker]]:
        """Give the circuits of an account that are not as good as new, by model; the key's has ALL_MODELS."""
        return [(model, circuit) for (name, model), circuit in list(self._circuits.items()) if name == account]

    def _each(self, account: str, model: str, change: Callable[[Breaker], Breaker]) -> bool:
        """Change the circuits of an account and a model; whether that changed any."""
        changed = False
        if self._circuits:
            for key in ((account, ALL_MODELS), (account, model)):
                before = self._circuits.get(key)
                if before is not None:
                    self._circuits[key] = after = change(before)
                    changed = changed or after != before
        return changed
