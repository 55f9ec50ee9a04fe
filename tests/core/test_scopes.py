"""Whose a scope is: what a key's bearer claims is its own, and reads as it was said."""

import pytest

from headgate.core.limits import Gauge, Window
from headgate.core.scopes import LimitRule, Scopes, fit, is_own, level_name, limits_for
from headgate.core.spans import Calendar

EACH_SESSION = LimitRule("session:*", Gauge("", "session:*", "slots", 1))
THAT_RUN = LimitRule("run:nightly", Gauge("", "run:nightly", "slots", 1))


def level(rule: LimitRule, scopes: Scopes) -> str:
    (limit,) = limits_for([rule], fit(scopes).path(), "m")
    assert level_name(limit.scope, rule.template) == limit.name, "a level's limit is found again by its name"
    assert rule.bind((limit.scope,), "m") == limit
    return limit.name


@pytest.mark.parametrize(
    ("scopes", "name"),
    [
        (Scopes(session="8c1f"), "session:8c1f"),
        (Scopes(key="ci", session="8c1f"), "session:8c1f"),  # a library's caller, who vouches for what it says
        (Scopes(key="ci", session="8c1f", claimed=("session",)), "session:8c1f|key:ci"),
        (Scopes(key="ci", session="8c1f|key:other", claimed=("session",)), "session:8c1f_key:other|key:ci"),
        (Scopes(key="ci|x", session="8c1f", claimed=("session",)), "session:8c1f|key:ci_x"),
        (Scopes(key="r/1.1", run="r", session="8c1f", claimed=("session",)), "session:8c1f|run:r"),
        (Scopes(key="ci", run="r", session="8c1f", claimed=("run", "session")), "session:8c1f|run:r|key:ci"),
        (Scopes(session="8c1f", claimed=("session",)), "session:8c1f"),  # nobody's: a gateway that is open to all
    ],
)
def test_a_claimed_session_is_its_bearers_own(scopes, name):
    assert level(EACH_SESSION, scopes) == f"{name} * slots gauge"


def test_all_keys_of_a_run_share_it_and_nobody_else_does():
    own = [Scopes(key=key, run="nightly") for key in ("nightly/1.1", "nightly/2.1")]
    claimed = [Scopes(key=key, run="nightly", claimed=("run",)) for key in ("ci", "other")]
    assert len({level(THAT_RUN, scopes) for scopes in own}) == 1
    assert len({level(THAT_RUN, scopes) for scopes in (own[0], *claimed)}) == 3


def test_claimed_tags_are_the_bearers_own_and_stated_ones_are_shared():
    scopes = Scopes(key="ci", tags=(("stage", "test"), ("colour", "red")), claimed=("tag:colour",))
    assert scopes.path() == ("key:ci", "tag:stage=test", "tag:colour=red|key:ci")


def test_agents_of_the_same_name_begin_anew_in_every_run():
    """A nightly fleet with a budget for each agent was refused for good after a few nights."""
    each_agent = LimitRule("agent:*", Gauge("", "agent:*", "slots", 1))
    near = [Scopes(key=f"{run}/0.1", run=run, agent="docs", claimed=("agent",)) for run in ("mon", "tue")]
    far = [Scopes(key=key, run="mon", agent="docs", claimed=("run", "agent")) for key in ("ci", "other")]
    assert [level(each_agent, scopes).partition(" ")[0] for scopes in (*near, *far)] == [
        "agent:docs|run:mon",
        "agent:docs|run:tue",
        "agent:docs|run:mon|key:ci",
        "agent:docs|run:mon|key:other",
    ]
    assert level(THAT_RUN, Scopes(key="ci", run="nightly", team="t", claimed=("run", "team"))).startswith(
        "run:nightly|key:ci "
    )
    assert "team:t|key:ci" in Scopes(key="ci", run="nightly", team="t", claimed=("run", "team")).path()


def test_an_agent_owns_none_of_its_siblings():
    for owned in (
        Scopes(key="r/0.1", run="r", agent="north", claimed=("agent",)),
        Scopes(key="ci", run="r", agent="north", claimed=("run", "agent")),
    ):
        for scope in owned.path():
            assert is_own(scope, owned)
        assert is_own(f"session:8c1f|{owned.bearer}", owned)
        assert not is_own(owned.path()[-1].replace("north", "south"), owned)
    assert is_own("agent:north|run:r|key:ci", Scopes(key="ci"))
    assert not is_own("agent:north|run:r|key:ci", Scopes(key="i"))


def test_a_bearer_owns_what_it_is_and_what_it_claims():
    owned = Scopes(key="ci", team="search")
    for scope in ("key:ci", "team:search", "session:8c1f|key:ci"):
        assert is_own(scope, owned)
    for scope in ("key:other", "session:8c1f", "session:8c1f|key:ci2", "team:search|key:other"):
        assert not is_own(scope, owned)


def test_a_rule_may_name_whose_a_claimed_scope_is() -> None:
    """`run:rr|key:adm2`, as it is shown, was accepted and held for nothing."""
    path = Scopes(key="adm2", run="rr", claimed=("run",)).path()
    everybodys, own, another, all_of_key = (
        LimitRule(scope, Window("", scope, "requests", amount, Calendar("day")))
        for scope, amount in (("run:*", 3), ("run:rr|key:adm2", 1), ("run:rr|key:other", 9), ("run:*|key:adm2", 2))
    )
    assert own.bind(path, "m") is not None
    assert another.bind(path, "m") is None
    assert all_of_key.bind(path, "m") is not None
    (limit,) = limits_for([everybodys, own], path, "m")
    assert (limit.scope, limit.amount) == ("run:rr|key:adm2", 1)
    assert own.bind(Scopes(key="other", run="rr", claimed=("run",)).path(), "m") is None
    assert own.bind(Scopes(run="rr").path(), "m") is None
