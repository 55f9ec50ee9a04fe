"""Choosing a policy: by its name, or by what is seen.

One rule: a choice changes only after the same better one was seen in two windows in a row, and a choice that is in
force is left later than it would be made, so that it does not flap. It orders nothing itself.
"""

from collections.abc import Callable, Hashable
from statistics import pvariance

from headgate.core.policies import Policy, fair, fifo, priority, program, round_robin, score, shortest
from headgate.core.shares import Waiter
from headgate.core.wording import seconds_text

SHORT_S = 1.0
VARIED = 0.5
CONTENDED = 0.7
"""The thresholds at which the choice is made; one in force is left only STAY beyond its own."""

STAY = 0.2

WINDOW_CALLS = 64
WINDOW_S = 10.0
"""A window of what is seen: so many admissions at least, over so many seconds at least."""

MOST_SEEN = 4096
"""Admissions kept of one window."""


class Adaptive:
    """Choose by what a window of admissions shows: short calls, varied priorities, contention, else a weighted score.

    Contention is the part of admissions at which a call of another agent waited. The bound on waiting is the chosen
    policy's; a call's time counts on when the choice changes.
    """

    name = "adaptive"

    def __init__(self) -> None:
        """Start with the score, which does a little of everything."""
        self.rule: Policy = score()
        self.why = f"fewer than {WINDOW_CALLS} admissions have been seen, which it takes to choose"
        self._agents: dict[Hashable, int] = {}
        self._costs_s: list[float] = []
        self._priorities: list[int] = []
        self._contended = 0
        self._since_s: float | None = None
        self._candidate = self.rule.name

    def enters(self, waiter: Waiter) -> None:
        """See a call come."""
        self._agents[waiter.agent] = self._agents.get(waiter.agent, 0) + 1

    def leaves(self, waiter: Waiter) -> None:
        """See a call go, however."""
        left = self._agents[waiter.agent] - 1
        if left:
            self._agents[waiter.agent] = left
        else:
            del self._agents[waiter.agent]

    def review(self, waiter: Waiter, cost_s: float, now_s: float) -> bool:
        """See an admission, after the call has left; True when another policy is in force from now on."""
        if self._since_s is None:
            self._since_s = now_s
        if len(self._costs_s) < MOST_SEEN:
            self._costs_s.append(cost_s)
            self._priorities.append(waiter.priority)
            self._contended += len(self._agents) > (waiter.agent in self._agents)
        if len(self._costs_s) < WINDOW_CALLS or now_s - self._since_s < WINDOW_S:
            return False
        best, why = self._best()
        settled = best == self._candidate
        self._candidate = best
        self._costs_s, self._priorities, self._contended, self._since_s = [], [], 0, now_s
        if best == self.rule.name:
            self.why = why
            return False
        if not settled:
            return False
        self.rule = _CHOICES[best]()
        self.why = why
        return True

    def _best(self) -> tuple[str, str]:
        mean_s = sum(self._costs_s) / len(self._costs_s)
        varied = pvariance(self._priorities)
        contended = self._contended / len(self._costs_s)
        now = self.rule.name
        if mean_s < SHORT_S * (1 + STAY * (now == "shortest")):
            return "shortest", f"calls take {seconds_text(mean_s)} of the limit on average, under {SHORT_S:g} s"
        if varied > VARIED * (1 - STAY * (now == "priority")):
            return "priority", f"priorities vary by {varied:.3g}, over {VARIED:g}"
        if contended > CONTENDED * (1 - STAY * (now == "round_robin")):
            return "round_robin", f"other agents wait at {contended:.0%} of the admissions, over {CONTENDED:.0%}"
        return "score", (
            f"calls take {seconds_text(mean_s)} of the limit on average, priorities vary by {varied:.3g}, and other "
            f"agents wait at {contended:.0%} of the admissions: none stands out"
        )


_CHOICES: dict[str, Callable[[], Policy]] = {
    "shortest": shortest,
    "priority": priority,
    "round_robin": round_robin,
    "score": score,
}

POLICIES: dict[str, Callable[[], Policy | Adaptive]] = {
    "fifo": fifo,
    "priority": priority,
    "shortest": shortest,
    "round_robin": round_robin,
    "fair": fair,
    "program": program,
    "adaptive": Adaptive,
}
"""The policies by their names in the configuration."""
