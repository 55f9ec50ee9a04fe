"""What one process finds of an account's health, those that serve with it go by too."""

from headgate.core.pool import CLOSED, FAILURES_TO_OPEN
from headgate.core.retries import Failure
from headgate.runtime.health import Health


class At:
    """A clock that stands."""

    def __init__(self) -> None:
        self.s = 1_000.0

    def now_s(self) -> float:
        return self.s


def pair() -> tuple[At, Health, Health, list[str]]:
    clock = At()
    one, other, news = Health(clock), Health(clock), []
    one.on_changed, other.on_changed = other.hear, one.hear
    other.on_news = news.append
    return clock, one, other, news


DOWN = Failure("server", "api_error", 500)


def test_a_circuit_that_opens_in_one_is_open_in_the_other_and_closes_with_it():
    clock, one, other, news = pair()
    for _ in range(FAILURES_TO_OPEN):
        one.failed("main", "m", DOWN)
    circuit = other.circuit("main", "m")
    assert circuit == one.circuit("main", "m")
    assert circuit.state(clock.s) == "open"
    assert other.open_circuits() == [("main", "m", circuit)]
    assert news == ["main"]
    clock.s = circuit.open_until_s
    other.tried("main", "m")
    assert one.circuit("main", "m").state(clock.s) == "half_open", "one that dies while it tries keeps none from it"
    other.succeeded("main", "m")
    assert one.circuit("main", "m") == other.circuit("main", "m") == CLOSED


def test_who_tries_a_circuit_is_not_told_with_it():
    clock, one, other, _ = pair()
    for _ in range(FAILURES_TO_OPEN):
        one.failed("main", "m", DOWN)
    clock.s = one.circuit("main", "m").open_until_s
    one.tried("main", "m")
    other.hear("main", "m", one.circuit("main", "m"))
    assert other.circuit("main", "m").state(clock.s) == "half_open"


def test_failures_that_open_nothing_are_not_told():
    _, one, other, news = pair()
    one.failed("main", "m", DOWN)
    assert other.circuit("main", "m") == CLOSED
    assert news == []
