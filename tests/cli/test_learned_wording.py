"""What was learned is told with since when it is known, and when it last changed."""

import pytest

from headgate.cli.wording import why_learned_text


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ("2026-11-02T12:05:00Z", "headers, since 12:03, changed 12:05"),
        ("2026-11-02T12:03:09Z", "headers, since 12:03"),
        (None, "headers, since 12:03"),
    ],
)
def test_a_limit_that_was_told_long_ago_says_when_its_amount_changed(changed, said):
    view = {"learned_from": "header", "learned_since": "2026-11-02T12:03:00Z", "learned_changed": changed}
    assert why_learned_text(view) == said
