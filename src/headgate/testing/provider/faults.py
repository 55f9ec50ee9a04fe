"""Faults on demand: which call goes wrong, and how.

One rule: a call that names its own fault gets it; otherwise the schedule speaks first and the dice last.
What a fault does to a call is written where calls are answered, not here.
"""

import random

from headgate.testing.provider.settings import FAULT_KINDS, Faults

__all__ = ["FaultChooser"]


class FaultChooser:
    """Chooses at most one fault for each call; replaceable while the provider runs."""

    __slots__ = ("_calls", "_dice", "settings")

    def __init__(self, settings: Faults) -> None:
        self.settings = settings
        self._calls = 0
        # S311: repeatable by design; nothing here is a secret.
        self._dice = random.Random(settings.seed)  # noqa: S311

    def choose(self, asked: str | None) -> str | None:
        """Give the fault of the next call; `asked` is what its header names.

        Raises:
            ValueError: the header names no fault that exists.
        """
        if asked is not None:
            if asked not in FAULT_KINDS:
                raise ValueError(f"x-provider-fault is {asked!r}; expected one of {', '.join(FAULT_KINDS)}")
            return asked
        if not self.settings.every and not self.settings.probability:
            return None
        self._calls += 1
        for kind, nth in self.settings.every.items():
            if self._calls % nth == 0:
                return kind
        for kind, share in self.settings.probability.items():
            if self._dice.random() < share:
                return kind
        return None
