"""Which limit keeps a level, where several rules fit: the same one for a call and for whoever reads the level."""

import pytest
from small_house import rate

from headgate.core.scopes import Scopes
from headgate.runtime.rules import Rules

RULES = (
    rate("requests", 5, scope="run:*"),
    rate("requests", 7, scope="run:n*"),
    rate("requests", 25, scope="run:nightly"),
)


@pytest.mark.parametrize(("run", "amount"), [("nightly", 25), ("noon", 7), ("daily", 5)])
def test_a_level_has_one_limit_whoever_asks(run, amount):
    rules = Rules(RULES)
    (met,) = rules.limits_for(Scopes(run=run), "claude-test")
    (read,) = rules.named([met.name])
    assert met == read
    assert met.amount == amount
