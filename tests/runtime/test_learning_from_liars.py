"""Providers that say other things of their limits than they do: told waits of nothing, limits above the real ones."""

import pytest
from small_house import open_small_house
from test_learning import carry, limited

from headgate.testing.scripted import Reply, ScriptedProvider
from headgate.testing.virtual_time import run

DAY_S = 86_400


@pytest.mark.parametrize("facts", [{}, {"dimension": "requests", "period_s": DAY_S}])
@pytest.mark.parametrize("told_s", [0.0, 0.001])
def test_who_refuses_again_and_again_and_tells_no_wait_is_asked_ever_less(told_s, facts):
    """Headgate sent its call again and again in one instant."""

    async def main():
        provider = ScriptedProvider([limited(told_s, **facts)] * 6 + [Reply(), limited(told_s, **facts), Reply()])
        async with open_small_house(provider=provider) as here:
            assert await carry(here) == 200
            sent_s = [at_s for at_s, _request in provider.sent]
            floors_s = [0.05, 0.1, 0.2, 0.4, 0.8, 1.6]
            waited_s = [later - at_s for at_s, later in zip(sent_s, sent_s[1:], strict=False)]
            assert waited_s == pytest.approx(floors_s, rel=0.1, abs=0.02)
            await carry(here)
            assert provider.sent[-1][0] - provider.sent[-2][0] == pytest.approx(0.05, abs=0.02), "begins anew"

    run(main())
