"""The configuration is read again while the gateway serves: all of it counts from then on, or nothing of it."""

import asyncio
import json

import pytest
from standing_keys import CALL, a_standing_key, bearing, call

ADMIN, WITH_ADMIN = "sk-planted-provider-secret", 'admin_token = "env:PROVIDER_KEY"'
LIMIT = '[[limit]]\nscope = "account:claude"\nrequests_per_day = 2\n'
PATH = "/api/v1/reload"
ABOVE_ITS_PARENT = """[[limit]]
scope = "team:search"
requests_per_day = 5
[[key]]
name = "ci"
team = "search"
requests_per_day = 9
"""


async def reload(stack, change=lambda text: text, secret=ADMIN):
    path = stack.house.config.path
    path.write_text(change(path.read_text()))
    status, _, body = await stack.send("POST", PATH, headers=bearing(secret))
    return status, json.loads(body)


def raised(text: str) -> str:
    return text.replace("requests_per_day = 2", "requests_per_day = 3")


def test_a_raised_limit_lets_the_call_that_waits_go_and_counts_on(with_stack):
    async def test(stack):
        ci = await a_standing_key(stack, "ci")
        assert [await call(stack, ci.secret) for _ in range(2)] == [200, 200]
        headers = [*bearing(ci.secret), (b"x-headgate-max-wait", b"89000")]
        waits = asyncio.create_task(stack.send("POST", "/v1/messages", CALL, headers))
        while not stack.house.manager.queue():
            assert not waits.done(), waits.result()
            await asyncio.sleep(0.01)
        status, told = await reload(stack, raised)
        assert (status, told) == (
            200,
            {"changed": ["limit account:claude: 3 requests per day instead of 2 requests per day"]},
        )
        assert (await waits)[0] == 200
        assert await call(stack, ci.secret) == 429
        assert (await reload(stack))[1] == {"changed": []}

    with_stack(test, limits=LIMIT, server=f"{WITH_ADMIN}\nmax_wait_s = 90000")


@pytest.mark.parametrize(
    ("limit", "cut", "amount", "said"),
    [
        ("requests_per_day = 9", "requests_per_day = 3", 4, "4 requests is more than there is in one window of"),
        ("requests_per_minute = 60", "requests_per_minute = 2", 600, "600 requests in 3,6"),
        ("slots = 9", "slots = 3", 4, "4 slots is more than there is at once of account:claude slots at once: 3 slots"),
    ],
)
def test_a_reload_that_cuts_a_limit_below_its_reservations_names_them(with_stack, limit, cut, amount, said):
    async def test(stack):
        wish = {"scope": "run:x", "of": "account:claude", "dimension": limit.partition("_")[0].partition(" ")[0]}
        wish |= {"amount": amount, "until": "1h"}
        body = json.dumps(wish).encode()
        status, _, made = await stack.send("POST", "/api/v1/reservations", body, bearing(ADMIN))
        assert status == 201, made
        status, told = await reload(stack, lambda text: text.replace(limit, cut))
        assert (status, len(told["changed"])) == (200, 2)
        plan = json.loads(made)["id"]
        assert told["changed"][1].startswith(f"reservation {plan} (run:x): cannot be kept in full: {said}")
        _, _, listed = await stack.send("GET", "/api/v1/reservations", headers=bearing(ADMIN))
        assert json.loads(listed)["reservations"][0]["short"].startswith(said)
        _, told = await reload(stack, lambda text: text.replace(cut, limit))
        assert len(told["changed"]) == 1

    with_stack(test, limits=f'[[limit]]\nscope = "account:claude"\n{limit}\n', server=WITH_ADMIN)


def test_what_the_configuration_says_of_keys_counts_from_then_on(with_stack):
    async def test(stack):
        ci = await a_standing_key(stack, "ci")
        assert [await call(stack, ci.secret) for _ in range(2)] == [200, 200]
        more = '[[key]]\nname = "ci"\nteam = "search"\n[[limit]]\nscope = "team:search"\nrequests_per_day = 1\n'
        _, told = await reload(stack, lambda text: raised(text) + more)
        assert told["changed"][1:] == ["limit team:search: 1 request per day, which is new", "key ci: is new"]
        assert [await call(stack, ci.secret) for _ in range(2)] == [200, 429]
        (row,) = [
            row for row in (await stack.get("/api/v1/usage?group_by=team", bearing(ADMIN)))["groups"] if row["team"]
        ]
        assert (row["team"], row["requests"]) == ("search", 1)

    with_stack(test, limits=LIMIT, server=WITH_ADMIN)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda text: raised(text) + "[[limit]]\n", "[[limit]] has no scope"),
        (lambda text: raised(text) + "nonsense", "headgate.toml:"),
        (lambda text: raised(text) + '[[maintenance]]\ncron = "61 * * * *"\nduration = "1h"\n', "the minute cannot be"),
        (lambda text: raised(text) + ABOVE_ITS_PARENT, "which it can never use"),
        (lambda text: raised(text).replace("first_delay_s = 0.001", "first_delay_s = -1"), "first_delay_s"),
        (lambda text: raised(text) + "[timeouts]\nidle_s = 3\n", "[timeouts] idle_s cannot change without a restart"),
        (lambda text: raised(text).replace('"gpt"', '"gpt-2"'), "[[account]] gpt, [[account]] gpt-2 cannot change"),
    ],
)
def test_what_cannot_be_used_changes_nothing(with_stack, change, told):
    async def test(stack):
        ci = await a_standing_key(stack, "ci")
        status, answer = await reload(stack, change)
        assert status == 400
        assert told in answer["error"]["message"]
        assert [await call(stack, ci.secret) for _ in range(3)] == [200, 200, 429]

    with_stack(test, limits=LIMIT, server=WITH_ADMIN)


def test_a_reload_is_in_the_log(with_stack, caplog):
    async def test(stack):
        assert (await reload(stack, raised))[0] == 200
        assert "reloaded over the control API, 1 changes\n  limit account:claude: 3 requests per day" in caplog.text
        assert (await reload(stack, lambda text: text + "nonsense"))[0] == 400
        assert "not reloaded over the control API, nothing has changed:\n" in caplog.text

    with_stack(test, limits=LIMIT, server=WITH_ADMIN)


def test_only_an_administrator_reloads(with_stack):
    async def test(stack):
        ci = await a_standing_key(stack, "ci")
        status, answer = await reload(stack, raised, ci.secret)
        assert (status, answer["error"]["type"]) == (403, "permission_error")
        assert [await call(stack, ci.secret) for _ in range(3)] == [200, 200, 429]

    with_stack(test, limits=LIMIT, server=WITH_ADMIN)


def test_what_was_ordered_of_the_scheduler_outlives_a_reload_until_the_file_says_otherwise(with_stack):
    async def test(stack):
        status, _, _ = await stack.send("PUT", "/api/v1/scheduler", b'{"policy": "fair"}', bearing(ADMIN))
        assert status == 200
        assert (await reload(stack))[1] == {"changed": []}
        assert len((await reload(stack, raised))[1]["changed"]) == 1
        weights = '[scheduler]\nweights = { "key:ci" = 2 }\n'
        assert len((await reload(stack, lambda text: text + weights))[1]["changed"]) == 1
        assert (await stack.get("/api/v1/scheduler", bearing(ADMIN)))["policy"] == "fair"
        changed = (await reload(stack, lambda text: text + 'policy = "shortest"\n'))[1]
        assert changed == {"changed": ['scheduler: policy = "shortest" instead of "fair"']}
        assert (await reload(stack))[1] == {"changed": []}
        assert (await stack.get("/api/v1/scheduler", bearing(ADMIN)))["policy"] == "shortest"

    with_stack(test, limits=LIMIT, server=WITH_ADMIN)


def test_a_reservation_whose_limit_is_gone_is_named(with_stack):
    async def test(stack):
        wish = {"scope": "key:ci", "of": "account:claude", "dimension": "requests", "amount": 1, "until": "1h"}
        body = json.dumps(wish).encode()
        status, _, made = await stack.send("POST", "/api/v1/reservations", body, bearing(ADMIN))
        assert status == 201
        _, told = await reload(stack, lambda text: text.replace(LIMIT, ""))
        made_id = json.loads(made)["id"]
        assert told["changed"] == [
            "limit account:claude: 2 requests per day, which is gone",
            f"reservation {made_id} (key:ci): holds nothing while account:claude * requests day is not configured",
        ]
        assert (await reload(stack, lambda text: text + LIMIT))[1]["changed"][1:] == []

    with_stack(test, limits=LIMIT, server=WITH_ADMIN)
