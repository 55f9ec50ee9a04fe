"""Keys that a runner elsewhere asks for: whose they are, what binds them, when they end, and what each may see."""

import json

import pytest
from standing_keys import CALL, a_standing_key, bearing, call

from headgate.cli.other_gateway import OtherGateway
from headgate.cli.report import RunReport, as_json, figures_of
from headgate.cli.run_gateway import OwnGateway
from headgate.core.errors import CallerError
from headgate.core.jobs import Job
from headgate.runtime import keys as key_rules


async def lend(stack, parent, *agents, run="r1", status=201, **more):
    wish = json.dumps({"run": run, "agents": agents, **more}).encode()
    got, _, answer = await stack.send("POST", "/api/v1/keys", wish, bearing(parent.secret) if parent else [])
    assert got == status, answer
    return json.loads(answer)


async def requests_by(stack, fields, secret, more=""):
    found = await stack.get(f"/api/v1/usage?group_by={fields}{more}", bearing(secret))
    return [tuple(row[name] for name in (*fields.split(","), "requests")) for row in found["groups"]]


def test_children_are_told_apart_and_meet_their_parents_limits_together(with_stack):
    async def test(stack):
        parent = await a_standing_key(stack, "ci", limits='[{"requests_per_day": 3}]', scopes='{"team": "search"}')
        lent = await lend(stack, parent, "north", "south.pole")
        assert lent["under"] == "ci"
        north, south = (key["key"] for key in lent["keys"])
        assert [key["agent"] for key in lent["keys"]] == ["north", "south.pole"]
        assert [await call(stack, secret) for secret in (north, south, parent.secret)] == [200, 200, 200]
        assert [await call(stack, secret) for secret in (south, north, parent.secret)] == [429, 429, 429]
        assert await requests_by(stack, "key,team,run,agent", parent.secret) == [
            ("ci", "search", None, None, 1),
            ("ci", "search", "r1", "north", 1),
            ("ci", "search", "r1", "south.pole", 1),
        ]
        assert await requests_by(stack, "run", parent.secret, "&agent=north") == [("r1", 1)]

    with_stack(test)


def test_a_childs_limits_hold_at_a_gateway_that_never_saw_its_parent(with_stack):
    async def test(stack):
        parent = await a_standing_key(stack, "ci", limits='[{"requests_per_day": 1}]')
        (child,) = await stack.house.manager.keys.lend(
            parent.stored, [key_rules.Holder("r1", "north", "unused")], life_s=60.0
        )
        assert [await call(stack, child.secret) for _ in range(2)] == [200, 429]

    with_stack(test)


def test_a_child_ends_with_its_parent_and_cannot_outlive_it(with_stack):
    async def test(stack):
        now_s = stack.house.clock.now_s()
        parent = await a_standing_key(stack, "ci", expires_s=now_s + 60)
        (made,) = (await lend(stack, parent, "north", expires_in_s=600_000))["keys"]
        stored = await stack.house.stores.keys.find(made["id"])
        assert (stored.expires_s, stored.parent, stored.fleet) == (now_s + 60, parent.stored.id, True)
        assert await call(stack, made["key"]) == 200
        assert await stack.house.manager.keys.revoke(parent.stored.id)
        assert await call(stack, made["key"]) == 401

    with_stack(test)


def test_a_child_is_ended_by_its_parent_alone_and_makes_none_itself(with_stack):
    async def test(stack):
        ours, theirs = await a_standing_key(stack, "ours"), await a_standing_key(stack, "theirs")
        (made,) = (await lend(stack, ours, "north"))["keys"]
        path = f"/api/v1/keys/{made['id']}"
        nested = json.dumps({"run": "r1", "agents": ["nested"]}).encode()
        status, _, answer = await stack.send("POST", "/api/v1/keys", nested, bearing(made["key"]))
        assert (status, json.loads(answer)["error"]["type"]) == (403, "permission_error")
        assert (await stack.send("DELETE", path, headers=bearing(made["key"])))[0] == 403
        assert (await stack.send("DELETE", path, headers=bearing(theirs.secret)))[0] == 404
        assert (await stack.send("DELETE", f"/api/v1/keys/{ours.stored.id}", headers=bearing(ours.secret)))[0] == 404
        assert await call(stack, made["key"]) == 200
        assert (await stack.send("DELETE", path, headers=bearing(ours.secret)))[0] == 200
        assert await call(stack, made["key"]) == 401
        assert (await stack.send("DELETE", path, headers=bearing(ours.secret)))[0] == 404

    with_stack(test)


def test_without_keys_loopback_makes_them_freely_and_stays_open(with_stack):
    async def test(stack):
        lent = await lend(stack, None, "north", "south")
        assert lent["under"] is None
        assert [key["name"] for key in lent["keys"]] == ["r1/north", "r1/south"]
        assert [await call(stack, lent["keys"][0]["key"]) for _ in range(2)] == [200, 429]
        assert await call(stack, lent["keys"][1]["key"]) == 200
        assert (await stack.send("DELETE", f"/api/v1/keys/{lent['keys'][0]['id']}"))[0] == 200
        assert {row["agent"] for row in (await stack.get("/api/v1/usage?group_by=agent"))["groups"]} == {
            "north",
            "south",
        }

    with_stack(test, limits='[[limit]]\nscope = "agent:*"\nrequests_per_day = 1')


def test_an_administrator_lends_and_ends_fleets_keys_and_no_others(with_stack):
    async def test(stack):
        admin = "sk-planted-provider-secret"
        standing = await a_standing_key(stack, "ci")
        (child,) = (await lend(stack, standing, "north"))["keys"]
        wish = json.dumps({"run": "r1", "agents": ["south"]}).encode()
        status, _, answer = await stack.send("POST", "/api/v1/keys", wish, bearing(admin))
        assert (status, json.loads(answer)["under"]) == (201, None)
        for key_id, expected in ((child["id"], 200), (standing.stored.id, 404)):
            assert (await stack.send("DELETE", f"/api/v1/keys/{key_id}", headers=bearing(admin)))[0] == expected
        assert [await call(stack, secret) for secret in (child["key"], standing.secret)] == [401, 200]
        assert (await stack.send("POST", "/api/v1/keys", wish))[0] == 401

    with_stack(test, server='admin_token = "env:PROVIDER_KEY"')


@pytest.mark.parametrize(
    ("wish", "named"),
    [
        (b"", "expected"),
        (b"[]", "object"),
        (b'{"run": "r"}', "agents"),
        (b'{"run": "", "agents": []}', "$.run"),
        (b'{"run": "r", "agents": [1]}', "$.agents[0]"),
        (b'{"run": "r", "agents": ["%s"]}' % (b"a" * 201), "200 characters"),
        (b'{"run": "r", "agents": [%s]}' % b",".join([b'"a"'] * 101), "100 agents"),
        (b'{"run": "r", "agents": [], "expires_in_s": 1e9}', "604800"),
        (b'{"run": "r", "agents": [], "expires_in_s": 0}', "expires_in_s"),
        (b'{"run": "r", "agents": [], "limits": []}', "limits"),
        (b'{"run": "\xff", "agents": []}', "expected"),
        ('{"run": "\u00e9", "agents": []}'.encode(), "run='\u00e9': expected a name of 1 to 200 letters (A to Z)"),
        (b'{"run": "r", "agents": ["a", "a b"]}', "agents[1]='a b': expected a name of 1 to 200"),
        (b'{"run": "r", "agents": ["a", "b", "a"]}', "agents: 'a' stands there twice; expected each agent once"),
    ],
)
def test_a_wish_that_cannot_be_understood_is_refused_by_name(with_stack, wish, named):
    async def test(stack):
        status, _, answer = await stack.send("POST", "/api/v1/keys", wish, [(b"anthropic-version", b"2023-06-01")])
        error = json.loads(answer)["error"]
        assert (status, error["type"]) == (400, "invalid_request_error")
        assert named in error["message"]
        assert await stack.house.stores.keys.prune_fleet(None, 0.0) == 0

    with_stack(test)


def test_keys_are_bounded_and_what_ended_makes_room(with_stack, monkeypatch):
    monkeypatch.setattr(key_rules, "MOST_LENT", 3)

    async def test(stack):
        parent = await a_standing_key(stack, "ci")
        made = (await lend(stack, parent, "a", "b"))["keys"]
        refused = await lend(stack, parent, "c", "d", status=400)
        assert "at most 3" in refused["error"]["message"]
        await stack.send("DELETE", f"/api/v1/keys/{made[0]['id']}", headers=bearing(parent.secret))
        assert len((await lend(stack, parent, "c", "d"))["keys"]) == 2

    with_stack(test)


def test_wrong_methods_and_too_large_a_wish_count_nothing(with_stack):
    async def test(stack):
        for method, path, status in (
            ("GET", "/api/v1/keys", 405),
            ("POST", "/api/v1/keys/0a1b", 405),
            ("POST", "/api/v1/runs/r1/attempts", 405),
            ("GET", "/api/v1/keys/not-an-id", 404),
            ("GET", "/api/v1/runs/r1/secrets", 404),
        ):
            assert (await stack.send(method, path))[0] == status, path
        assert (await stack.send("POST", "/api/v1/keys", b" " * 200_000))[0] == 413
        for query, named in (
            ("after=-1", "after"),
            ("most=x", "most"),
            ("most=0", "most=0: expected a whole number from 1"),
            ("colour=red", "colour"),
        ):
            status, _, answer = await stack.send("GET", f"/api/v1/runs/r1/attempts?{query}")
            assert (status, named in json.loads(answer)["error"]["message"]) == (400, True)
        assert (await stack.send("GET", "/api/v1/limits?scope=colour"))[0] == 400

    with_stack(test)


# --- what each may see

LIMITS = """
[[limit]]
scope = "account:claude"
requests_per_day = 50
[[limit]]
scope = "run:*"
usd_per_month = 5
timezone = "Europe/Berlin"
[[limit]]
scope = "agent:*"
requests_per_5h = 20
[[limit]]
scope = "key:*"
slots = 8
[[limit]]
scope = "tag:stage=*"
requests_per_rolling_hour = 30
[[limit]]
scope = "team:*"
tokens_per_lifetime = 1000000
"""


def test_nobody_reads_or_spends_a_run_of_another_key(with_stack):
    async def test(stack):
        ours, theirs = await a_standing_key(stack, "ours"), await a_standing_key(stack, "theirs")
        north, south = (key["key"] for key in (await lend(stack, ours, "north", "south"))["keys"])
        assert [await call(stack, secret) for secret in (north, south, south)] == [200, 200, 200]
        # They say that they work on our run, in every way there is.
        (spy,) = (key["key"] for key in (await lend(stack, theirs, "north"))["keys"])
        for secret in (theirs.secret, spy):
            headers = [*bearing(secret), (b"x-headgate-run", b"r1"), (b"x-headgate-agent", b"south")]
            assert (await stack.send("POST", "/v1/messages", CALL, headers))[0] == 200
            rows = (await stack.get("/api/v1/runs/r1/attempts", bearing(secret)))["attempts"]
            assert {row["scopes"]["key"] for row in rows} == {"theirs"}
            seen = (await stack.get("/api/v1/limits", bearing(secret)))["limits"]
            assert not any("ours" in view["scope"] or view["scope"].startswith("account:") for view in seen), seen
        used = {view.scope: view.used for view in await stack.house.manager.limits() if view.kind == "window"}
        assert used["agent:south|run:r1|key:ours"] == 2, "what others claim is not charged here"
        mine = (await stack.get("/api/v1/runs/r1/attempts", bearing(ours.secret)))["attempts"]
        assert [row["scopes"]["agent"] for row in mine] == ["north", "south", "south"]
        assert not any("owner" in row for row in mine)
        own = (await stack.get("/api/v1/runs/r1/attempts", bearing(north)))["attempts"]
        assert [row["scopes"]["agent"] for row in own] == ["north"], "an agent does not read its siblings' calls"
        seen = {view["scope"] for view in (await stack.get("/api/v1/limits", bearing(north)))["limits"]}
        assert seen == {"key:ours", "run:r1|key:ours", "agent:north|run:r1|key:ours"}
        assert await requests_by(stack, "agent", north) == [("north", 1)]
        assert (await stack.get("/api/v1/runs/nobodys/attempts", bearing(ours.secret)))["attempts"] == []

    with_stack(test, limits=LIMITS)


def test_a_runs_rows_come_in_pages(with_stack):
    async def test(stack):
        for _ in range(5):
            assert (await stack.send("POST", "/v1/messages", CALL, [(b"x-headgate-run", b"a/b")]))[0] == 200
        ids, after = [], 0
        while after is not None:
            page = await stack.get(f"/api/v1/runs/a%2Fb/attempts?after={after}&most=2")
            assert len(page["attempts"]) <= 2
            ids += [row["id"] for row in page["attempts"]]
            after = page["next"]
        assert ids == [attempt.id for attempt in await stack.house.stores.ledger.attempts("a/b")]

    with_stack(test)


def test_a_report_is_the_same_from_elsewhere(with_stack):
    """Of a gateway without keys all of it is; a key's bearer does not learn what others used of what all share."""

    async def test(stack):
        near, far = OwnGateway(stack.house, "r1", stack.url), OtherGateway(stack.http, stack.url, "r1", None)
        await far.check()
        for index, name in enumerate(("north", "south.pole", "south.pole")):
            key = await far.lend_key(Job("r1", index, name, "{}"))
            assert await call(stack, key.secret) == 200
            headers = [*bearing(key.secret), (b"x-headgate-tags", b"stage=test"), (b"x-headgate-team", b"t")]
            assert (await stack.send("POST", "/v1/messages", CALL, headers))[0] == 200
            await far.end_key(key)
            assert await call(stack, key.secret) == 401
        ours, theirs = await near.books(), await far.books()
        assert len(ours.calls) == 6
        assert [(shown.limit.scope, shown.limit.dimension) for shown in ours.limits] == [
            ("account:claude", "requests"),
            ("run:r1", "micro_usd"),
            ("tag:stage=test|run:r1", "requests"),
            ("team:t|run:r1", "tokens"),
        ]
        assert _shown(theirs) == _shown(ours)
        assert _now(await far.now()) == _now(await near.now())

        parent = await a_standing_key(stack, "ci")
        bearer = OtherGateway(stack.http, stack.url, "r2", parent.secret)
        await bearer.check()
        assert await call(stack, (await bearer.lend_key(Job("r2", 0, "north", "{}"))).secret) == 200
        used = {shown.limit.scope: shown.used for shown in (await bearer.books()).limits}
        assert used == {"account:claude": None, "key:ci": 0, "run:r2|key:ci": used["run:r2|key:ci"]}
        assert used["run:r2|key:ci"] > 0
        assert [row["scope"] for row in (await bearer.now()).limits] == ["key:ci", "run:r2|key:ci"]
        with pytest.raises(CallerError, match=r"answered 401.*HEADGATE_KEY"):
            await far.check()
        with pytest.raises(CallerError, match="refused"):
            await OtherGateway(stack.http, "http://127.0.0.1:9", "r2", None).check()

    def _shown(books):
        jobs = [Job("r1", 0, "north", "{}", state="done"), Job("r1", 1, "south.pole", "{}", state="done")]
        return as_json(figures_of(RunReport("r1", jobs, books.calls, books.limits)))

    def _now(now):
        levels = [{name: row[name] for name in row if name != "resets_at"} for row in now.limits]
        return levels, now.waiting, now.usage

    with_stack(test, limits=LIMITS)
