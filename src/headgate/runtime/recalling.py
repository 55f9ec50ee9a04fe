"""Recalling: what the ledger says of answers that came before this process, for its estimates.

One rule: it reads, once at a start and once when a limit first holds what is likely; nothing waits for more.
"""

from collections import defaultdict

from headgate.core.estimates import Estimator
from headgate.ports import LedgerStore
from headgate.runtime.rules import Rules

MOST_RECALLED = 1_000
"""Rows of the ledger that a start learns from, read in a thread in 20 ms; an estimator keeps 500 for each model."""

MOST_LONGEST_RECALLED = 10_000
"""Rows that are read where a limit holds what is likely, in 0.2 s: that needs 999 outputs of a model."""


class Recalling:
    """Lets an estimator learn from the ledger."""

    def __init__(self, ledger: LedgerStore, estimator: Estimator, rules: Rules) -> None:
        """Read nothing yet."""
        self._ledger = ledger
        self._estimator = estimator
        self._rules = rules

    async def recall(self) -> None:
        """Learn from the ledger how long answers are: a new estimator would hold too much until it has seen some."""
        for model, tokens in (await self._outputs(MOST_RECALLED)).items():
            self._estimator.recall(model, tokens)

    async def see_likely(self) -> None:
        """Learn what is likely from the first limit on that holds it; before its calls, which would hold bounds."""
        if self._rules.hold_likely and not self._estimator.keeps_longest:
            self._estimator.keep_longest()
            for model, tokens in (await self._outputs(MOST_LONGEST_RECALLED)).items():
                self._estimator.recall_longest(model, tokens)

    async def _outputs(self, most: int) -> dict[str, list[int]]:
        """Give the outputs of each model in the newest rows of the ledger, oldest first."""
        outputs: defaultdict[str, list[int]] = defaultdict(list)
        for row in await self._ledger.attempts(None, most):
            if row.state == "done" and row.usage.reported and row.usage.output_tokens:
                outputs[row.model].append(row.usage.output_tokens)
        return outputs
