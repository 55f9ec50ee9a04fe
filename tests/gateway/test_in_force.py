"""What a gateway goes by is what the command line shows beside it, not what somebody wrote into the file since."""

import asyncio
import json

import pytest
from standing_keys import a_standing_key, bearing, call

from headgate.cli.budgets import show_budgets
from headgate.cli.questions import show_limits
from headgate.core.errors import LimitError
from headgate.runtime import announced

LIMIT = '[[limit]]\nscope = "account:claude"\nrequests_per_5h = 2\n'
ADMIN, WITH_ADMIN = "sk-planted-provider-secret", 'admin_token = "env:PROVIDER_KEY"'


def edited(stack) -> None:
    path = stack.house.config.path
    path.write_text(path.read_text().replace("requests_per_5h = 2", "requests_per_5h = 7") + "# a remark\n")


async def check(stack):
    await asyncio.to_thread(show_budgets, stack.house.config.path, "", None, check=True, as_json=True)


def test_a_budget_that_is_spent_in_the_gateway_is_spent_whatever_the_file_says(with_stack, capsys):
    """`budget --check` passed, and showed 5 of 7 free, while the gateway refused every call."""

    async def test(stack):
        ci = await a_standing_key(stack, "ci")
        assert [await call(stack, ci.secret) for _ in range(3)] == [200, 200, 429]
        with pytest.raises(LimitError, match="is spent: 2 of 2"):
            await check(stack)
        capsys.readouterr()
        edited(stack)
        with pytest.raises(LimitError, match="is spent: 2 of 2"):
            await check(stack)
        out, err = capsys.readouterr()
        assert [(each["amount"], each["free"]) for each in json.loads(out)["budgets"]] == [(2, 0)]
        assert " and that is shown here. To reload it (POST /api/v1/reload) would change:\n    limit account:cla" in err
        assert "7 requests per 5 hours from the first call instead of 2 requests" in err
        assert (await stack.send("POST", "/api/v1/reload", headers=bearing(ADMIN)))[0] == 200
        await check(stack)
        out, err = capsys.readouterr()
        assert [(each["amount"], each["free"]) for each in json.loads(out)["budgets"]] == [(7, 5)]
        assert err == ""

    with_stack(test, limits=LIMIT, server=WITH_ADMIN)


def test_of_two_gateways_the_one_that_was_not_reloaded_counts_in_a_check(with_stack, capsys):
    async def test(stack):
        ci = await a_standing_key(stack, "ci")
        assert [await call(stack, ci.secret) for _ in range(2)] == [200, 200]
        path = stack.house.config.path
        before = announced.Announced("elsewhere", str(path.resolve()), path.read_text(), 1.0)
        await announced.announce(stack.house.stores.levels, before, lambda _owner: True)
        edited(stack)
        assert (await stack.send("POST", "/api/v1/reload", headers=bearing(ADMIN)))[0] == 200
        with pytest.raises(LimitError, match="is spent: 2 of 2"):
            await check(stack)
        out, err = capsys.readouterr()
        assert [each["amount"] for each in json.loads(out)["budgets"]] == [7]
        assert " which is not what is shown here" in err

    with_stack(test, limits=LIMIT, server=WITH_ADMIN)


def test_what_a_gateway_went_by_ends_with_it(with_stack, capsys):
    paths = []

    async def test(stack):
        paths.append(stack.house.config.path)
        levels, owner = stack.house.stores.levels, stack.house.owner

        async def known():
            return {each.owner for each in await announced.announced(levels, lambda _owner: True)}

        killed = announced.Announced("killed", str(paths[0].resolve()), "", 1.0)
        await announced.announce(levels, killed, lambda _owner: True)
        assert await known() == {owner, "killed"}
        assert {each.owner for each in await announced.announced(levels, lambda name: name != "killed")} == {owner}
        ours = announced.Announced(owner, str(paths[0].resolve()), "", 2.0)
        await announced.announce(levels, ours, lambda name: name != "killed")
        assert await known() == {owner}
        assert [each.name for each in await stack.house.manager.limits()] == ["account:claude * requests plan-18000s"]
        edited(stack)

    with_stack(test, limits=LIMIT, server=WITH_ADMIN)
    show_limits(paths[0], as_json=True)
    out, err = capsys.readouterr()
    assert [each["amount"] for each in json.loads(out)["limits"]] == [7]
    assert err == ""
