"""A worker that ends is started anew, after a pause that doubles, and not for ever."""

from headgate.cli.workers import FIRST_PAUSE_S, MOST_ENDS, MOST_PAUSE_S, pause_after_s


def test_the_pause_doubles_up_to_a_bound_and_then_the_worker_stays_down():
    pauses = [pause_after_s(ends) for ends in range(1, MOST_ENDS + 1)]
    assert pauses[:3] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
    assert pauses[-1] == MOST_PAUSE_S
    assert sum(pauses) < 120
    assert pause_after_s(MOST_ENDS + 1) is None
