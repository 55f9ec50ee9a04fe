"""Of an answer that is charged as it goes by only what comes next is held, and no provider's bucket overflows."""

from dataclasses import dataclass

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from headgate.core import quota
from headgate.core.amounts import Amounts, Demand, demand
from headgate.core.limits import Rate
from headgate.core.quota import Admitted, Reservation
from headgate.runtime.streaming import drawn_tokens

NOW_S = 1_750_000_000.0
TICK_S = 0.25


def asks(tokens: int, pace: int = 0) -> Demand:
    return demand(Amounts(output_tokens=tokens))._replace(output_tokens_per_s=pace)


def rate(amount: int, burst: int) -> Rate:
    return Rate("output", "account:a", "output_tokens", amount, 60, burst)


@dataclass
class Stream:
    """One answer on its way: so much was written, of so much in all."""

    reservation: Reservation
    asked: Demand
    length: int
    pace: int
    part: int
    written: int = 0
    charged: int = 0


class Provider:
    """A leaky bucket in whole numbers that counts each token when it is written."""

    def __init__(self, limit: Rate) -> None:
        self.amount, self.period, self.fill, self.at_ticks = limit.amount, limit.period_s, 0, 0

    def write(self, tokens: int) -> None:
        self.fill += tokens * self.period * round(1 / TICK_S)

    def tick(self) -> None:
        self.fill = max(0, self.fill - self.amount)

    def tokens(self) -> float:
        return self.fill * TICK_S / self.period


@settings(max_examples=25, phases=(Phase.generate,))
@given(
    amount=st.integers(6_700, 12_000),  # no stream alone is faster than the limit: it would go into debt
    depth_s=st.integers(2, 60),
    streams=st.lists(
        st.tuples(st.integers(300, 3_000), st.integers(20, 100), st.sampled_from((1, 1, 0.5)), st.integers(0, 20)),
        min_size=12,
        max_size=40,
    ),
)
def test_streams_that_keep_their_pace_never_write_more_than_the_bucket_takes(amount, depth_s, streams):
    limit = rate(amount, max(1, amount * depth_s // 60))
    provider, levels, running, waiting = Provider(limit), {}, [], sorted(streams, key=lambda each: each[3])
    for ticks in range(400):
        now_s = NOW_S + ticks * TICK_S
        provider.tick()
        for stream in list(running):
            piece = min(stream.length - stream.written, int(stream.pace * TICK_S))
            stream.written += piece
            provider.write(piece)
            told = Amounts(output_tokens=stream.written)
            if stream.written == stream.length:
                levels |= quota.settle((limit,), levels, stream.reservation, told, now_s)[0]
                running.remove(stream)
            elif stream.written >= stream.charged + stream.part:
                stream.charged = stream.written
                changed, stream.reservation = quota.draw(
                    (limit,), levels, stream.reservation, told, now_s, asked=stream.asked
                )
                levels |= changed
        while waiting and waiting[0][3] <= ticks:
            tokens, pace, share, _ticks = waiting[0]
            asked = asks(tokens, pace)
            outcome = quota.admit((limit,), levels, asked, now_s)
            if not isinstance(outcome, Admitted):
                break
            waiting.pop(0)
            levels |= outcome.levels
            _held, part = drawn_tokens((limit,), asked)
            running.append(Stream(outcome.reservation, asked, max(1, int(tokens * share)), pace, part))
        # What goes by between two looks is charged with the second.
        pieces = sum(int(each.pace * TICK_S) for each in running)
        assert provider.tokens() <= limit.burst + pieces + 1


def test_of_a_long_answer_only_what_comes_next_is_held_until_less_is_left():
    limit = rate(6_000, 1_000)  # a bucket of 10 s
    ahead = limit.ahead_of_stream(50)
    assert 500 < ahead < 550
    outcome = quota.admit((limit,), {}, asks(900, 50), NOW_S)
    assert isinstance(outcome, Admitted)
    levels, reservation = outcome.levels, outcome.reservation
    held = []
    for told in (0, 100, 300, 500, 800, 900, 1_000):
        changed, reservation = quota.draw(
            (limit,), levels, reservation, Amounts(output_tokens=told), NOW_S, asked=asks(900, 50)
        )
        levels |= changed
        reading = quota.read(limit, levels, NOW_S)
        assert reading.used == told
        held.append(reading.held)
    assert held == [ahead, ahead, ahead, 400, 100, 0, 0]


def test_a_deep_bucket_or_an_unknown_pace_holds_the_whole_estimate():
    for limit, asked in ((rate(6_000, 6_000), asks(900, 50)), (rate(6_000, 1_000), asks(900))):
        outcome = quota.admit((limit,), {}, asked, NOW_S)
        assert isinstance(outcome, Admitted)
        assert quota.read(limit, outcome.levels, NOW_S).held == 900
        assert drawn_tokens((limit,), asked) == (900, 225)


def test_what_is_charged_at_the_start_is_held_in_full():
    limit = Rate("tokens", "account:a", "output_tokens", 6_000, 60, 1_000, charged_at_start=True)
    outcome = quota.admit((limit,), {}, asks(900, 50), NOW_S)
    assert isinstance(outcome, Admitted)
    assert quota.read(limit, outcome.levels, NOW_S).used == 900
