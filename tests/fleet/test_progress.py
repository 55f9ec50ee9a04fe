"""Progress: a picture on a terminal, few lines elsewhere, nothing with --json; and never a reason to stop."""

import asyncio
import io

import pytest
from rich.console import Console

from headgate.cli.progress import LimitRow, ProgressConsole, Snapshot, UsageRow, show_progress
from headgate.cli.progress_picture import History, line, picture
from headgate.cli.wording import count_text, duration_text, limit_text, per_text, share_text, usd_text
from headgate.core.errors import StoreError
from headgate.testing import virtual_time


def limit(name: str = "in", share: float = 0.5, **more: object) -> LimitRow:
    row: LimitRow = {
        "name": name, "scope": "account:main", "models": "claude-*", "dimension": "input_tokens", "kind": "rate",
        "amount": 60_000, "per": "60s", "burst": 1000, "used": int(1000 * share), "held": 0, "free": 0, "share": share,
        "resets_at": None,
    }  # fmt: skip
    return {**row, **more}  # type: ignore[typeddict-item]  # a test's shorthand


def usage(tokens: int, model: str = "claude-x", **more: object) -> UsageRow:
    row: UsageRow = {
        "account": "main", "model": model, "requests": 3, "input_tokens": tokens, "output_tokens": 10,
        "cache_read_tokens": 0, "cache_write_tokens": 0, "cost_micro_usd": 1_500_000, "unknown_cost": 0, "wait_ms": 0,
    }  # fmt: skip
    return {**row, **more}  # type: ignore[typeddict-item]  # a test's shorthand


def jobs(done: int, running: int = 2, queued: int = 0) -> dict[str, int]:
    return {"queued": queued, "running": running, "done": done, "failed": 0}


class Terminal:
    """A console that notes when it was written to."""

    def __init__(self, *, is_terminal: bool) -> None:
        self.out = io.StringIO()
        self.console = ProgressConsole(
            file=self.out, force_terminal=is_terminal, width=100, height=30, color_system=None
        )


def shown(read, seconds: float, *, is_terminal: bool = False, style=None) -> str:
    terminal = Terminal(is_terminal=is_terminal)

    async def scene() -> None:
        async with show_progress("run-1", read, terminal.console, style):
            await asyncio.sleep(seconds)

    virtual_time.run(scene())
    return terminal.out.getvalue()


def test_without_a_terminal_a_line_is_written_at_most_every_five_seconds():
    reads = 0

    async def always_new() -> Snapshot:
        nonlocal reads
        reads += 1
        return Snapshot(jobs(reads))

    lines = shown(always_new, 21.5).splitlines()
    assert [text.split()[0] for text in lines] == ["0:00", "0:05", "0:10", "0:15", "0:20", "0:22"]


def test_nothing_new_is_not_said_again_but_the_last_state_is():
    async def read() -> Snapshot:
        now_s = asyncio.get_running_loop().time()
        return Snapshot(jobs(0 if now_s < 20 else 1 if now_s < 100 else 2))

    lines = shown(read, 100).splitlines()
    assert [text.split()[0] for text in lines] == ["0:00", "0:20", "1:40"]
    assert "2 done" in lines[-1]


def test_with_json_nothing_is_shown_and_nothing_is_asked():
    async def read() -> Snapshot:
        raise AssertionError

    assert shown(read, 100, style="none") == ""


def test_a_terminal_is_asked_and_drawn_at_most_four_times_a_second():
    reads = 0

    async def read() -> Snapshot:
        nonlocal reads
        reads += 1
        return Snapshot(jobs(reads))

    text = shown(read, 10, is_terminal=True)
    assert 10 <= reads <= 41
    assert f"{reads}/{reads + 2} jobs" in text


def test_figures_that_cannot_be_had_are_missing_and_the_work_goes_on():
    asked = 0

    async def read() -> Snapshot:
        nonlocal asked
        asked += 1
        if asked > 1:
            raise StoreError("the database is locked")
        return Snapshot(jobs(7))

    lines = shown(read, 11).splitlines()
    assert "7 done" in lines[-1]
    assert "no figures: the database is locked" in lines[-1]


def test_a_reader_who_has_gone_does_not_end_the_work():
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    async def read() -> Snapshot:
        return Snapshot(jobs(1))

    async def scene() -> str:
        async with show_progress("run-1", read, ProgressConsole(file=Gone()), "lines"):
            await asyncio.sleep(10)
        return "worked on"

    assert virtual_time.run(scene()) == "worked on"


def test_the_works_own_error_comes_through():
    async def read() -> Snapshot:
        return Snapshot(jobs(1))

    async def scene() -> None:
        async with show_progress("run-1", read, Terminal(is_terminal=True).console):
            raise ValueError("of the work")

    with pytest.raises(ValueError, match="of the work"):
        virtual_time.run(scene())


# --- the picture


def drawn(*snapshots: tuple[float, Snapshot], width: int = 120) -> str:
    history = History("run-1", 0.0)
    for now_s, snapshot in snapshots:
        history.add(snapshot, now_s)
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(picture(history))
    return out.getvalue()


def test_the_picture_names_the_limit_that_binds_and_its_use():
    waiting = [{"limit": "in", "agent": f"a{number}"} for number in range(3)] + [{"limit": "x", "agent": "a0"}]
    text = drawn((0, Snapshot(jobs(1), [limit(share=0.97)], waiting, [usage(0)], refused=0)))
    assert "waiting 3" in text
    assert "(3 for account:main claude-* input tokens)" in text
    assert "97 %" in text
    assert "429s from the provider 0" in text
    assert "$1.50" in text


def test_a_rate_shows_how_fast_it_was_used_lately():
    snapshots = [(second, Snapshot(jobs(1), [limit()], usage=[usage(500 * second)])) for second in range(20)]
    assert "now 30.0k/min, refills 60.0k/min" in drawn(*snapshots)


def test_a_rate_whose_scope_the_usage_does_not_tell_shows_no_speed():
    snapshots = [(second, Snapshot(jobs(1), [limit(scope="key:ci")], usage=[usage(500 * second)])) for second in (0, 5)]
    text = drawn(*snapshots)
    assert "60.0k/min" in text
    assert "now " not in text


def test_a_rate_of_a_run_behind_a_gateway_elsewhere_shows_its_speed():
    scope = "run:r1|key:ci"
    snapshots = [
        (second, Snapshot(jobs(1), [limit(scope=scope)], usage=[usage(500 * second, run="r1")])) for second in (0, 5)
    ]
    assert "now 30.0k/min" in drawn(*snapshots)


def test_calls_of_other_models_do_not_count_for_a_rate():
    snapshots = [
        (second, Snapshot(jobs(1), [limit()], usage=[usage(100), usage(500 * second, "gpt-5")])) for second in (0, 5)
    ]
    assert "now 0/min, refills 60.0k/min" in drawn(*snapshots)


def test_of_a_thousand_limits_the_fullest_are_shown():
    limits = [limit(f"l{number}", number / 1000, scope=f"agent:{number}") for number in range(1000)]
    text = drawn((0, Snapshot(jobs(1), limits)))
    assert len(text.splitlines()) < 20
    assert "agent:999" in text
    assert "and 992 more limits" in text


def test_the_time_left_is_guessed_once_there_is_something_to_go_by():
    early = drawn((0, Snapshot(jobs(0, 4, 20))), (4, Snapshot(jobs(2, 4, 18))))
    assert "left" not in early
    later = drawn((0, Snapshot(jobs(0, 4, 16))), (30, Snapshot(jobs(8, 4, 8))))
    assert "about 0:30 left" in later  # 8 and half of 4 in 30 s; half of 4 and 8 to go


def test_a_resumed_run_is_not_credited_with_what_was_done_before():
    resumed = drawn((0, Snapshot(jobs(90, 0, 10))), (30, Snapshot(jobs(95, 0, 5))))
    assert "about 0:30 left" in resumed


def test_unknown_cost_is_shown_as_unknown():
    history = History("run-1", 0.0)
    history.add(Snapshot(jobs(1), usage=[usage(0, unknown_cost=2)]), 0.0)
    assert "$1.50 + ?" in line(history)


def test_cost_and_tokens_never_go_backwards():
    """What a call is thought to cost was shown as spent, and was less once it was known."""
    before, after = History("run-1", 0.0), History("run-1", 0.0)
    before.add(Snapshot(jobs(1), usage=[usage(0, state="done"), usage(5_000, state="in_flight", requests=3)]), 0.0)
    after.add(Snapshot(jobs(1), usage=[usage(10, state="done")]), 1.0)
    assert "3 under way, 0 prompt tokens" in line(before)
    assert "$1.50" in line(before)
    assert "0 under way, 10 prompt tokens" in line(after)
    assert "$1.50" in line(after)


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_picture_fits_its_terminal(width):
    waiting = [{"limit": "in", "agent": "a"}]
    text = drawn((0, Snapshot(jobs(1), [limit()], waiting, [usage(1)], 0, "draining")), width=width)
    assert all(len(each) <= width for each in text.splitlines())
    assert "50 %" in text


# --- wording


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (count_text(9_999), "9,999"), (count_text(12_345), "12.3k"), (count_text(41_200_000), "41.2M"),
        (usd_text(450_000), "$0.4500"), (usd_text(0), "$0.00"), (usd_text(None), "?"), (usd_text(12_345_678), "$12.35"),
        (usd_text(1), "$0.000001"), (usd_text(42), "$0.000042"), (usd_text(90), "$0.00009"), (usd_text(100), "$0.0001"),
        (usd_text(-42), "-$0.000042"), (usd_text(3, 1), "$0.000003 + ?"), (usd_text(999_999), "$1.0000"),
        (share_text(0.9996), "99.9 %"), (share_text(1.0), "100 %"), (share_text(None), "-"), (share_text(0.5), "50 %"),
        (duration_text(0), "0 s"), (duration_text(0.42), "420 ms"), (duration_text(59.7), "1:00"),
        (duration_text(3_600), "1:00:00"), (duration_text(100_000), "1 d 03:46"), (duration_text(9.5), "9.50 s"),
        (per_text("60s"), "/min"), (per_text("plan-18000s"), "/5 h (plan)"), (per_text("lifetime"), " in all"),
        (per_text("month"), "/month"), (per_text("rolling-604800s"), "/7 d (rolling)"), (per_text("10s"), "/10 s"),
        (limit_text("run:x", None, "micro_usd"), "run:x dollars"),
    ],
)  # fmt: skip
def test_figures_are_short_and_not_less_true(written, expected):
    assert written == expected


def test_what_was_learned_shows_beside_what_is_configured_and_alone_where_nothing_is():
    closed = {"configured": False, "learned_from": "429", "closed_until": "2026-11-02T12:30:00Z", "kind": "window"}
    limits = [
        limit("less", learned=45_000, learned_from="header", learned_models="claude-opus-4*"),
        limit("as-much", models="claude-haiku-*", learned=60_000, learned_from="header"),
        limit("alone", models="gpt-5", configured=False, learned=60_000, learned_from="429"),
        limit("closed", models="gpt-4", learned=None, amount=10**8, **closed),
    ]
    drawn_lines = [text for text in drawn((0, Snapshot(jobs(1), limits))).splitlines() if "input tokens" in text]
    lines = {text.split(" input")[0].split()[-1]: text for text in drawn_lines}
    assert "60.0k/min, learned 45.0k/min for claude-opus-4* (header)" in lines["claude-*"]
    assert "learned" not in lines["claude-haiku-*"]
    assert "gpt-5 input tokens (learned)" in lines["gpt-5"]
    assert "closed until 12:30:00" in lines["gpt-4"]
    assert "100" not in lines["gpt-4"]
