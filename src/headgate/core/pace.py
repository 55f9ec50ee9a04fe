"""Pace: how a plan window's use compares with an even pace towards its reset.

One rule: the line begins at 0 when the window opens and ends at 1 when it resets; who is behind it has more to use than
time will leave, and goes first. Which account serves is `pool`'s.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PlanShare:
    """A plan window of `period_s` of which a part is used; it ends at `resets_s` (None: it is not open, or not told).

    `told_s` is when the provider said so, None for a configured window.
    """

    period_s: int
    used: float
    resets_s: float | None
    models: str | None = None
    told_s: float | None = None

    def line(self, now_s: float) -> float | None:
        """Give the part of the window that has passed: what an even pace would have used. None if nobody knows."""
        if self.resets_s is None:
            return 0.0 if self.told_s is None else None
        return 1.0 - min(1.0, max(0.0, self.resets_s - now_s) / self.period_s)

    def behind(self, now_s: float) -> float | None:
        """Give how far it is behind its line, as a part of the window; below 0 ahead."""
        line = self.line(now_s)
        return None if line is None else line - self.used
