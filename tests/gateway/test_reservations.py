"""Planned reservations through the gateway: others leave alone what is set aside, and what cannot be is refused."""

import json

import pytest
from standing_keys import CALL, a_standing_key, bearing, call

ADMIN, WITH_ADMIN = "sk-planted-provider-secret", 'admin_token = "env:PROVIDER_KEY"'
LIMIT = '[[limit]]\nscope = "account:claude"\nrequests_per_day = 4\nusd_per_month = 5\n'
OURS = "account:claude * requests day"


async def ask(stack, method, path="", wish=None, secret=ADMIN):
    body = b"" if wish is None else json.dumps(wish).encode()
    status, _, answer = await stack.send(method, f"/api/v1/reservations{path}", body, bearing(secret))
    return status, json.loads(answer)


def a_wish(**words):
    return {"scope": "key:ci", "of": "account:claude", "dimension": "requests", "amount": 2, "until": "1h", **words}


def test_what_is_set_aside_is_left_for_its_holder_until_it_is_cancelled(with_stack):
    async def test(stack):
        ci, other = await a_standing_key(stack, "ci"), await a_standing_key(stack, "other")
        status, made = await ask(stack, "POST", wish=a_wish())
        assert (status, made["limit"], made["amount"], made["at_once"]) == (201, OURS, 2, 2)
        assert [await call(stack, other.secret) for _ in range(3)] == [200, 200, 429]
        assert await call(stack, ci.secret) == 200
        (shown,) = (await ask(stack, "GET"))[1]["reservations"]
        assert made.pop("certain_from") == made["from"]
        assert shown == {**made, "used": 1, "held": 0, "free": 1, "filling": 0, "short": None}
        assert (await ask(stack, "DELETE", f"/{made['id']}"))[0] == 200
        assert (await ask(stack, "GET"))[1] == {"reservations": []}
        assert await call(stack, other.secret) == 200
        assert await call(stack, ci.secret) == 429
        assert (await ask(stack, "DELETE", f"/{made['id']}"))[0] == 404

    with_stack(test, limits=LIMIT, server=WITH_ADMIN)


def test_a_keys_bearer_sees_its_own_and_changes_none(with_stack):
    async def test(stack):
        ci, other = await a_standing_key(stack, "ci"), await a_standing_key(stack, "other")
        _, made = await ask(stack, "POST", wish=a_wish())
        assert [row["id"] for row in (await ask(stack, "GET", secret=ci.secret))[1]["reservations"]] == [made["id"]]
        assert (await ask(stack, "GET", secret=other.secret))[1]["reservations"] == []
        for method, path, wish in (("POST", "", a_wish()), ("DELETE", f"/{made['id']}", None)):
            status, answer = await ask(stack, method, path, wish, secret=ci.secret)
            assert (status, answer["error"]["type"]) == (403, "permission_error")
        assert len((await ask(stack, "GET"))[1]["reservations"]) == 1

    with_stack(test, limits=LIMIT, server=WITH_ADMIN)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"amount": 5}, "possible: at most 4 requests"),
        ({"amount": 0}, "amount=0: expected a whole number from 1 to 1,000,000,000,000,000"),
        ({"amount": -1}, "amount=-1: expected a whole number from 1 to "),
        (
            {"until": "2000-01-01T00:00:00Z"},
            "it would end at 2000-01-01 00:00:00 UTC, which is past; expected",
        ),
        ({"from": "2h", "until": "1h"}, "and begin at 20"),
        ({"from": "2000-01-01T00:00:00Z"}, "which is past"),
        ({"until": "60d"}, "at most 31 days ahead"),
        ({"until": "soon"}, "'soon' is no time"),
        (
            {"from": "2040-12-01T22:00:00"},
            "has no offset: write 2040-12-01T22:00:00Z for UTC, or 2040-12-01T22",
        ),
        ({"until": "2040-12-01"}, "'2040-12-01' has no offset: write 2040-12-01T00:00:00Z for UTC"),
        (
            {"dimension": "micro_usd", "amount": None, "usd": "3.0000000001"},
            "usd=3.0000000001: expected millionths of a dollar at the smallest",
        ),
        ({"until": ""}, "a time is missing"),
        ({"scope": "everybody"}, "'everybody' cannot hold a reservation"),
        ({"scope": "run:*"}, "'run:*' cannot hold a reservation"),
        (
            {"scope": "planet:x", "of": "account:nope"},
            "'planet:x' cannot hold a reservation; expected one key, team",
        ),
        (
            {"scope": "run:\u00fc"},
            "'run:\u00fc' cannot hold a reservation; expected a name of 1 to 200 letters (A to Z)",
        ),
        ({"scope": "run:\u0000p"}, "cannot hold a reservation; expected a name of 1 to 200"),
        ({"scope": "tag:x"}, "'tag:x' cannot hold a reservation; expected tag:name=value"),
        ({"scope": "agent:a|nobody"}, "cannot hold a reservation; expected one of account, key, "),
        ({"dimension": "tokens"}, "there is no limit 'account:claude tokens'"),
        ({"usd": 1}, "one of them"),
        ({"limit": OURS}, "say which limit by `limit`, its name, or by `of` and `dimension`; not by both"),
        ({"amount": None, "usd": 1}, "account:claude requests/day counts requests, not dollars"),
        (
            {"of": None, "dimension": None, "limit": "nothing"},
            "there is no limit 'nothing'; expected one of: account:claude dollars/month; account:claude requests/day",
        ),
        ({"ammount": 5}, "unknown field `ammount`"),
    ],
)
def test_what_cannot_be_honoured_is_refused_with_the_reason_and_changes_nothing(with_stack, words, told):
    async def test(stack):
        status, answer = await ask(stack, "POST", wish=a_wish(**words))
        assert status == 400
        assert told in answer["error"]["message"]
        assert (await ask(stack, "GET"))[1] == {"reservations": []}

    with_stack(test, limits=LIMIT, server=WITH_ADMIN)


RATE = '[[limit]]\nscope = "account:claude"\nrequests_per_minute = 600\n'


def test_one_request_of_an_hour_is_there_from_the_beginning(with_stack):
    """It said that one request was certain to fit, and the list that it was used: its bucket filled within the hour."""

    async def test(stack):
        ci = await a_standing_key(stack, "ci")
        status, made = await ask(stack, "POST", wish=a_wish(amount=1))
        assert (status, made["at_once"], made["certain_from"], made["kind"]) == (201, 1, made["from"], "rate")
        (shown,) = (await ask(stack, "GET"))[1]["reservations"]
        assert [shown[word] for word in ("used", "free", "filling", "at_once")] == [0, 1, 0, 1]
        assert await call(stack, ci.secret) == 200
        (shown,) = (await ask(stack, "GET"))[1]["reservations"]
        assert [shown[word] for word in ("used", "free", "filling", "at_once")] == [1, 0, 0, 1]

    with_stack(test, limits=RATE, server=WITH_ADMIN)


def test_a_limit_goes_by_the_name_that_tables_and_refusals_have(with_stack):
    async def test(stack):
        named = {"of": None, "dimension": None, "limit": "account:claude requests/day"}
        status, made = await ask(stack, "POST", wish=a_wish(**named))
        assert (status, made["limit"]) == (201, OURS)

    with_stack(test, limits=LIMIT, server=WITH_ADMIN)


def test_dollars_are_set_aside_to_the_millionth(with_stack):
    async def test(stack):
        wish = a_wish(dimension="micro_usd", amount=None, usd=0.000003)
        status, made = await ask(stack, "POST", wish=wish)
        assert (status, made["amount"], made["dimension"]) == (201, 3, "micro_usd")

    with_stack(test, limits=LIMIT, server=WITH_ADMIN)


def test_more_than_the_holder_may_use_itself_is_not_set_aside(with_stack):
    async def test(stack):
        status, answer = await ask(stack, "POST", wish=a_wish(until="1m"))
        assert status == 400
        assert "under its own key:ci * requests lifetime; possible: at most 1 request" in answer["error"]["message"]
        assert (await ask(stack, "POST", wish=a_wish(amount=1, until="1m")))[0] == 201

    own = '[[key]]\nname = "ci"\nrequests_per_lifetime = 1\n'
    with_stack(test, limits=LIMIT + own, server=WITH_ADMIN)


async def shown(stack, path, name):
    _, _, answer = await stack.send("GET", f"/api/v1/{path}", headers=bearing(ADMIN))
    (found,) = [each for each in json.loads(answer)[path] if each["name"] == name]
    return {word: found[word] for word in ("used", "free", "set_aside")}


def test_who_is_kept_out_by_a_reservation_reads_why_and_what_is_free_for_it(with_stack):
    """The refusal said `limit reached: 4 requests per day`, and budgets and limits that nearly all of it was free."""

    async def test(stack):
        other = await a_standing_key(stack, "other")
        await ask(stack, "POST", wish=a_wish(amount=3))
        assert await call(stack, other.secret) == 200
        asking = [*bearing(other.secret), (b"x-headgate-max-wait", b"0")]
        status, _, answer = await stack.send("POST", "/v1/messages", CALL, asking)
        assert status == 429
        told = json.loads(answer)["error"]["message"]
        assert "4 requests per day for account:claude, of which planned reservations keep 3 requests; the call" in told
        for path in ("limits", "budgets"):
            assert await shown(stack, path, OURS) == {"used": 1, "free": 0, "set_aside": 3}

    with_stack(test, limits=LIMIT, server=WITH_ADMIN)
