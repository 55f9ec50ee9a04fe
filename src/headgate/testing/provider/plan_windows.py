"""Plan windows: the 5-hour and 7-day limits of a subscription, as Claude Code meets them, and their headers.

One rule: a window is opened by first use, floored to the hour, and closes at a fixed time on the loop's clock; wall
time is only told. No vendor documents these headers: their names and meaning are what clients read.
"""

import math
from dataclasses import dataclass

from headgate.testing.provider.settings import PlanWindow

__all__ = ["Plan", "PlanRefusal"]

_HOUR_S = 3_600.0
_WARNING_SHARE = 0.75
_CLAIMS = {"5h": "five_hour", "7d": "seven_day"}


@dataclass(frozen=True, slots=True)
class PlanRefusal:
    """Which window is spent, and for how long."""

    window: str
    wait_s: float


class _Window:
    """One window's use; closed (no end) until something is used."""

    __slots__ = ("ends_s", "settings", "used_tokens")

    def __init__(self, settings: PlanWindow) -> None:
        self.settings = settings
        self.used_tokens = 0
        self.ends_s: float | None = None

    def roll(self, now_s: float) -> None:
        if self.ends_s is not None and now_s >= self.ends_s:
            self.ends_s = None
            self.used_tokens = 0

    def use(self, tokens: int, now_s: float, wall_s: float) -> None:
        self.roll(now_s)
        if self.ends_s is None:
            length_s = self.settings.length_s
            self.ends_s = now_s + length_s - (wall_s % _HOUR_S if length_s > _HOUR_S else 0.0)
        self.used_tokens += tokens

    def utilization(self) -> float:
        return self.used_tokens / self.settings.tokens


class Plan:
    """The windows of one credential."""

    __slots__ = ("_windows",)

    def __init__(self, windows: tuple[PlanWindow, ...]) -> None:
        self._windows = [_Window(settings) for settings in windows]

    def __bool__(self) -> bool:
        return bool(self._windows)

    def refusal(self, now_s: float) -> PlanRefusal | None:
        """Give the spent window that resets last, or None while every window has something left."""
        binding: PlanRefusal | None = None
        for window in self._windows:
            window.roll(now_s)
            if window.ends_s is not None and window.utilization() >= 1:
                wait_s = window.ends_s - now_s
                if binding is None or wait_s > binding.wait_s:
                    binding = PlanRefusal(window.settings.name, wait_s)
        return binding

    def use(self, tokens: int, now_s: float, wall_s: float) -> None:
        """Count tokens in every window, and open the closed ones."""
        for window in self._windows:
            window.use(tokens, now_s, wall_s)

    def headers(self, now_s: float, wall_s: float) -> list[tuple[bytes, bytes]]:
        """Give the unified headers; a window that nothing opened yet shows the end it would have from now on."""
        if not self._windows:
            return []
        for window in self._windows:
            window.roll(now_s)
        binding = max(self._windows, key=_Window.utilization)
        told = [
            ("status", _status(binding)),
            ("reset", _reset(binding, now_s, wall_s)),
            ("representative-claim", _CLAIMS.get(binding.settings.name, binding.settings.name)),
            ("fallback", "unavailable"),
            ("overage-status", "rejected"),
        ]
        for window in self._windows:
            name = window.settings.name
            told += [
                (f"{name}-status", _status(window)),
                (f"{name}-utilization", f"{window.utilization():.4f}"),
                (f"{name}-reset", _reset(window, now_s, wall_s)),
            ]
            if window.utilization() >= _WARNING_SHARE:
                told.append((f"{name}-surpassed-threshold", str(_WARNING_SHARE)))
        return [(f"anthropic-ratelimit-unified-{name}".encode(), value.encode()) for name, value in told]


def _status(window: _Window) -> str:
    if window.utilization() >= 1:
        return "rejected"
    return "allowed_warning" if window.utilization() >= _WARNING_SHARE else "allowed"


def _reset(window: _Window, now_s: float, wall_s: float) -> str:
    ends_s = now_s + window.settings.length_s if window.ends_s is None else window.ends_s
    return str(math.ceil(wall_s + ends_s - now_s))
