"""Bounds: the most that a call can use is never less than it uses, and what nothing bounds is said to be so."""

import pytest

from headgate.core.bounds import Most, PromptBound, Reach, Unbounded, meets_budget, most_used
from headgate.core.limits import Gauge, Rate, Rolling, Window
from headgate.core.spans import Calendar

KNOWN = Reach(context_window=200_000, max_output_tokens=64_000, server_tool_turns=10)
NOBODY_KNOWS = Reach()


@pytest.mark.parametrize(
    ("prompt", "stated", "reach", "most"),
    [
        (PromptBound(1_000, 512), 100, KNOWN, Most(1_512, 100, 512)),
        (PromptBound(1_000, 512), 100, NOBODY_KNOWS, Most(1_512, 100, 512)),
        (PromptBound(1_000_000), 100, KNOWN, Most(200_000, 100, 0)),
        (PromptBound(1_000_000), 100, NOBODY_KNOWS, Most(1_000_000, 100, 0)),
        (PromptBound(1_000, unknown="a PDF"), 100, KNOWN, Most(200_000, 100)),
        (PromptBound(1_000), None, KNOWN, Most(1_000, 64_000, 0)),
        (PromptBound(1_000, choices=3), None, KNOWN, Most(1_000, 192_000, 0)),
        (PromptBound(1_000), None, Reach(200_000), Most(1_000, 200_000, 0)),
        (PromptBound(1_000), 10**9, KNOWN, Most(1_000, 200_000, 0)),
        (PromptBound(1_000, choices=3), 10**9, KNOWN, Most(1_000, 600_000, 0)),
        (PromptBound(1_000, turns=None), 100, KNOWN, Most(2_000_000, 1_000)),
        (PromptBound(1_000, turns=3), 100, KNOWN, Most(600_000, 300)),
        (PromptBound(900_000, windowed=False), 0, Reach(8_192), Most(900_000, 0, 0)),
    ],
)
def test_the_most_that_a_call_can_use(prompt, stated, reach, most):
    assert most_used(prompt, stated, reach) == most


@pytest.mark.parametrize(
    ("prompt", "stated", "reach"),
    [
        (PromptBound(1_000, unknown="a PDF"), 100, NOBODY_KNOWS),
        (PromptBound(1_000, turns=None), 100, NOBODY_KNOWS),
        (PromptBound(1_000), None, NOBODY_KNOWS),
        (PromptBound(1_000, unknown="a PDF"), 100, Reach(None, 64_000)),
    ],
)
def test_what_nothing_bounds_is_said_to_be_unbounded(prompt, stated, reach):
    assert isinstance(most_used(prompt, stated, reach), Unbounded)


def test_only_windows_of_money_are_budgets():
    day = Calendar("day")
    assert meets_budget([Rate("r", "run:a", "requests", 1, 60, 1), Window("w", "run:a", "micro_usd", 1, day)])
    assert meets_budget([Rolling("w", "run:a", "micro_usd", 1, 60)])
    assert not meets_budget(
        [
            Rate("r", "run:a", "micro_usd", 1, 60, 1),
            Window("w", "run:a", "input_tokens", 1, day),
            Gauge("g", "run:a", "slots", 1),
        ]
    )
    assert not meets_budget([])
