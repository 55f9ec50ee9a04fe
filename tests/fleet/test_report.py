"""The report: figures that can be checked by hand, at any size, and a page that nobody can break out of."""

import io
import itertools
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from headgate.cli.report import LimitShown, ProviderCount, RunReport, as_json, figures_of, print_report, write_page
from headgate.cli.report.levels import Span, charges_of, level_use, merged, pauses
from headgate.cli.report.logs import shown_path
from headgate.cli.report.page import page_of
from headgate.cli.report.series import bins_of, occupancy, series_of
from headgate.core.jobs import Job
from headgate.core.ledger import Attempt, AttemptState
from headgate.core.limits import Gauge, Limit, Rate, Rolling, Window
from headgate.core.scopes import Scopes
from headgate.core.spans import Calendar, Lifetime
from headgate.core.usage import NO_USAGE, Usage

T0 = 1_780_000_000.0
RATE = Rate("r", "account:main", "input_tokens", 600, 60, 100)  # 10 a second, 100 at once


def call(
    queued_s: float,
    admitted_s: float,
    done_s: float | None,
    tokens: int = 100,
    *,
    agent: str | None = "a",
    output: int = 0,
    cost: int | None = 5,
    model: str = "claude-sonnet-4-5",
    state: AttemptState = "done",
) -> Attempt:
    return Attempt(
        id="x",
        call="x",
        attempt=1,
        owner="o",
        scopes=Scopes(account="main", run="run-1", agent=agent),
        endpoint="/v1/messages",
        model=model,
        queued_s=T0 + queued_s,
        admitted_s=T0 + admitted_s,
        usage=Usage(input_tokens=tokens, output_tokens=output, cache_read_tokens=1000),
        cost_micro_usd=cost,
        state=state,
        done_s=None if done_s is None else T0 + done_s,
    )


def job(name: str = "a", index: int = 0, **more: object) -> Job:
    known: dict[str, object] = {"state": "done", "attempt": 1, "started_s": T0, "ended_s": T0 + 10, **more}
    return Job("run-1", index, name, "{}", **known)  # type: ignore[arg-type]  # a test's shorthand


def use(limit: Limit, *calls: Attempt):
    return level_use(limit, charges_of(calls, limit, "anthropic"), calls)


# --- the use of limits


def test_a_rate_that_always_binds_was_used_to_the_full():
    # 100 at once, then 100 each time that ten seconds have refilled it.
    calls = [call(0, 10 * at, 10 * at) for at in range(10)]
    found = use(RATE, *calls)
    assert found.highest == pytest.approx(1)
    assert found.average == pytest.approx(1)
    assert found.while_waiting == pytest.approx(1)


def test_a_rate_used_by_half_says_half():
    calls = [call(20 * at, 20 * at, 20 * at + 20) for at in range(10)]
    # 1,000 used of the 100 at the start and of 200 s at 10 a second.
    assert use(RATE, *calls).average == pytest.approx(1000 / 2100)
    assert use(RATE, *calls).while_waiting is None


def test_what_the_bucket_had_saved_up_counts_as_given():
    assert use(RATE, call(0, 0, 5, tokens=50)).average == pytest.approx(50 / (100 + 50))


def test_time_in_which_nothing_was_under_way_is_not_held_against_a_rate():
    calls = [call(0, 0, 10), call(5, 10, 20), call(1000, 1000, 1010)]
    found = use(RATE, *calls)
    assert found.average == pytest.approx(300 / (100 + 200 + 100))  # the bucket at the start, and 30 s at 10 a second
    assert found.while_waiting == pytest.approx(1)


def test_waiting_while_a_limit_had_room_is_seen():
    # The call waits for something else: this limit is full again after 10 s, and then drops what it refills.
    found = use(RATE, call(0, 0, 1), call(0, 50, 51))
    assert found.while_waiting == pytest.approx(10 / 50)


def test_output_counts_as_it_flows_and_cached_input_does_not_count():
    output = Rate("o", "account:main", "output_tokens", 600, 60, 100)
    # 10 a second come and 10 a second drain: only the pieces in which they come are seen.
    assert use(output, call(0, 0, 100, output=1000)).highest == pytest.approx(0.15, abs=0.02)
    assert [charge.units for charge in charges_of([call(0, 0, 1)], RATE, "anthropic")] == [100]
    assert [charge.units for charge in charges_of([call(0, 0, 1)], RATE, "openai")] == [1100]


def test_slots_are_counted_over_time():
    slots = Gauge("g", "account:main", "slots", 4)
    found = use(slots, call(0, 0, 10), call(0, 5, 10), call(10, 10, 20))
    assert found.highest == pytest.approx(0.5)
    assert found.average == pytest.approx((10 + 5 + 10) / 20 / 4)
    assert found.while_waiting == pytest.approx(0.25)


def test_a_budget_is_what_was_spent_of_it_and_a_calendar_begins_anew():
    budget = Window("b", "run:run-1", "micro_usd", 20, Lifetime())
    assert use(budget, call(0, 0, 1), call(0, 0, 2), call(0, 0, 3, cost=None)).highest == pytest.approx(0.5)
    hourly = Window("h", "run:run-1", "micro_usd", 20, Calendar("hour"))
    assert use(hourly, call(0, 0, 1, cost=15), call(3600, 3600, 3601, cost=10)).highest == pytest.approx(0.75)
    rolling = Rolling("w", "run:run-1", "micro_usd", 20, 60)
    assert use(rolling, call(0, 0, 1, cost=8), call(0, 0, 30, cost=6), call(0, 0, 65, cost=3)).highest == pytest.approx(
        0.7
    )


def test_a_limit_counts_only_calls_in_its_scope_and_of_its_models():
    mine = Rate("r", "agent:a", "requests", 60, 60, 1, models="claude-opus*")
    calls = [call(0, 0, 1, model="claude-opus-4-5"), call(0, 0, 1, model="claude-haiku"), call(0, 0, 1, agent="b")]
    (limit,) = figures_of(RunReport("run-1", [], calls, [LimitShown(mine)])).limits
    assert limit.used == 1


def test_a_clock_that_stepped_back_while_a_call_waited_invents_no_use():
    assert use(RATE, call(10, 5, 12)).highest == pytest.approx(1)


# --- sums


def test_sums_by_agent_and_in_all():
    calls = [
        call(0, 2, 5, output=50),
        call(6, 6, 9, cost=None, state="failed"),
        call(0, 4, 8, agent="b"),
        call(1, 1, None, agent=None, state="lost"),
    ]
    figures = figures_of(RunReport("run-1", [job("a"), job("b", 1, state="failed", attempt=3, error="no")], calls))
    a, b, nobody = figures.agents
    assert (a.calls, a.failed_calls, a.prompt_tokens, a.cached_tokens, a.output_tokens) == (2, 1, 2200, 2000, 50)
    assert (a.cost_micro_usd, a.unknown_cost, a.wait_s, a.longest_wait_s) == (5, 1, 2, 2)
    assert (b.state, b.attempts, b.error, b.wait_s) == ("failed", 3, "no", 4)
    assert (nobody.name, nobody.calls, nobody.failed_calls) == ("(no agent)", 1, 1)
    assert (figures.total.calls, figures.total.cost_micro_usd, figures.total.attempts) == (4, 15, 4)
    assert figures.states == {"done": 1, "failed": 1, "running": 0, "queued": 0}
    assert (figures.wait_quantile_s(0.5), figures.wait_quantile_s(1.0)) == (2, 4)


def test_an_agent_whose_name_has_spaces_has_its_calls():
    jobs = [job("mend the login"), job("mend_the_login", 1), job("b", 2)]
    calls = [call(0, 1, 2, agent="mend_the_login"), call(0, 1, 2, agent="b")]  # as a scope has it
    figures = figures_of(RunReport("run-1", jobs, calls))
    assert [(agent.name, agent.calls) for agent in figures.agents] == [
        ("mend the login", 1), ("mend_the_login", 0), ("b", 1),
    ]  # fmt: skip
    assert max(series_of(figures).working) == pytest.approx(3)


def test_an_error_of_an_attempt_before_the_good_one_is_not_shown():
    figures = figures_of(RunReport("run-1", [job(error="the first try failed", attempt=2)], []))
    assert figures.agents[0].error is None


# --- series


@given(
    st.lists(st.tuples(st.floats(0, 1000), st.floats(0, 300)).map(lambda pair: Span(pair[0], pair[0] + pair[1]))),
    st.sampled_from([1.0, 7.0, 300.0, 5000.0]),
)
def test_occupancy_loses_and_invents_no_second(spans, took_s):
    bins = bins_of(0, max((span.to_s for span in spans), default=took_s))
    average = occupancy(spans, bins)
    assert sum(average) * bins.step_s == pytest.approx(sum(span.to_s - span.from_s for span in spans), abs=1e-6)
    assert all(-1e-9 <= value <= len(spans) + 1e-9 for value in average)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)).map(lambda pair: Span(pair[0], pair[0] + pair[1]))))
def test_merged_stretches_cover_the_same_instants_once(spans):
    joined = merged(spans)
    assert all(one.to_s < other.from_s for one, other in itertools.pairwise(joined))
    for instant in range(71):
        half = instant + 0.5
        assert any(s.from_s <= half <= s.to_s for s in spans) == any(s.from_s <= half <= s.to_s for s in joined)


def test_bins_are_round_and_bounded():
    for took_s in (0.0, 0.3, 60, 3_000, 86_400, 10_000_000):
        bins = bins_of(T0, T0 + took_s)
        assert 1 <= bins.count <= 241
        assert bins.count * bins.step_s >= took_s


def test_an_agent_that_was_tried_twice_was_at_work_both_times():
    calls = [call(0, 0, 10), call(30, 30, 40)]
    figures = figures_of(RunReport("run-1", [job(started_s=T0 + 30, ended_s=T0 + 40, attempt=2)], calls))
    series = series_of(figures)
    at = [series.working[series.bins.at(T0 + second)] for second in (5, 20, 35)]
    assert at == pytest.approx([1, 0, 1])


def test_a_rates_series_is_its_throughput_and_a_budgets_is_its_level():
    calls = [call(at, at, at + 1, tokens=5, cost=1) for at in range(100)]  # 5 a second of 10
    budget = Window("b", "run:run-1", "micro_usd", 200, Lifetime())
    series = series_of(figures_of(RunReport("run-1", [], calls, [LimitShown(RATE), LimitShown(budget)])))
    rate, spent = (
        next(each.shares for each in series.limits if each.limit.kind == kind) for kind in ("rate", "window")
    )
    assert rate[len(rate) // 2] == pytest.approx(0.5)
    assert spent[-1] == pytest.approx(0.5)
    assert spent == sorted(spent)


def shares_of(*calls: Attempt) -> list[float]:
    (only,) = series_of(figures_of(RunReport("run-1", [], calls, [LimitShown(RATE)]))).limits
    return only.shares


def test_what_a_bucket_had_saved_up_is_not_use_beyond_the_limit():
    # All 100 at once, and then each 10 as soon as they are refilled: not one unit more could have been had.
    shares = shares_of(call(0, 0, 1), *(call(0, second, second + 1, tokens=10) for second in range(1, 60)))
    assert max(shares) == pytest.approx(1, abs=0.02)
    assert min(shares[2:-2]) == pytest.approx(1, abs=0.05)


def test_a_debt_is_use_beyond_the_limit_and_is_not_cut_off():
    shares = shares_of(call(0, 0, 1, tokens=400), call(60, 60, 61, tokens=0))
    assert shares[0] > 3
    assert min(shares[: len(shares) * 28 // 61]) >= 1  # 300 of debt, at 10 a second: nobody else could have had any
    assert shares[-1] == 0


def by(owner: str, *calls: Attempt) -> list[Attempt]:
    return [replace(each, owner=owner) for each in calls]


def test_a_killed_runner_leaves_a_pause_until_the_run_is_resumed():
    first = by("a", call(0, 0, 5), call(1, 6, 30, state="reconciled"))  # its end was learned when the run was resumed
    again = by("b", call(30, 31, 35), call(32, 50, 60, state="lost"))
    last = by("c", call(90, 90, 100))
    assert pauses([*last, *first, *again]) == [Span(T0 + 6, T0 + 30), Span(T0 + 50, T0 + 90)]
    assert pauses(first) == pauses([]) == []


def test_runners_side_by_side_make_no_pause():
    assert pauses([*by("a", call(0, 0, 50), call(40, 40, 50)), *by("b", call(10, 10, 20))]) == []


def test_nobody_is_at_work_while_no_runner_lives():
    calls = [*by("a", call(0, 0, 10, state="reconciled")), *by("b", call(30, 30, 40))]
    figures = figures_of(RunReport("run-1", [job(ended_s=T0 + 40)], calls))
    series = series_of(figures)
    assert [series.working[series.bins.at(T0 + second)] for second in (5, 20, 35)] == pytest.approx([0, 0, 1])
    page = data_of(page_of(figures))
    assert page["pauses"] == [[0, 30]]
    assert max(page["calling"][:50]) == 0


def test_the_time_in_which_no_runner_lived_was_not_taken_by_anybody():
    calls = [*by("a", call(0, 0, 10)), *by("b", call(100, 100, 130)), *by("b", call(100, 101, 120, agent="late"))]
    jobs = [job(ended_s=T0 + 130), job("late", 1, started_s=T0 + 100, ended_s=T0 + 120)]
    figures = figures_of(RunReport("run-1", jobs, calls))
    assert [agent.took_s for agent in figures.agents] == [40, 20]
    assert (figures.took_s, figures.paused_s, figures.elapsed_s) == (40, 90, 130)
    assert "finished after 40 s of work in 2:10: 2 done" in printed(figures)
    assert data_of(page_of(figures))["elapsed_s"] == 130


def test_a_call_that_was_refused_is_no_call_of_the_providers():
    rate = Rate("r", "agent:a", "requests", 60, 60, 60)
    refused = replace(call(3, 3, 3, tokens=0, state="refused"), usage=NO_USAGE, sent=False, error_type="x")
    figures = figures_of(RunReport("run-1", [job()], [call(0, 1, 2), refused], [LimitShown(rate)]))
    assert (figures.total.calls, figures.total.refused_calls, len(figures.waits_s)) == (1, 1, 1)
    assert figures.limits[0].used == 1
    assert sum(series_of(figures).wait_counts) == 1
    assert "1 calls were refused by Headgate, and not sent" in printed(figures)


def test_every_call_is_in_the_spread_of_waits():
    calls = [call(0, wait_s, 2000) for wait_s in (0, 0.005, 0.2, 5, 59, 601, 1500)]
    series = series_of(figures_of(RunReport("run-1", [], calls)))
    assert series.wait_counts == [2, 0, 1, 0, 0, 1, 0, 1, 0, 0, 0, 2]


# --- what is shown

NASTY = "</script><img src=x onerror=alert(1)>%%DATA%%<!--"


def nasty_report(agents: int = 3) -> RunReport:
    jobs = [
        job(f"{NASTY}{index}", index, state="failed" if index % 2 else "done", error=NASTY if index % 2 else None)
        for index in range(agents)
    ]
    calls = [call(index, index + 1, index + 3, agent=jobs[index].name, output=10) for index in range(agents)]
    limits = [LimitShown(RATE), LimitShown(Window("b", "run:run-1", "micro_usd", 200, Lifetime()), used=30)]
    limits.append(LimitShown(Gauge("g", f"tag:{NASTY}", "slots", 1)))
    return RunReport(NASTY, jobs, calls, limits, ProviderCount(agents, 0, 1, 2), simulated=True, what=NASTY)


def data_of(page: str):
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found.group(1))


def test_names_and_errors_cannot_break_out_of_the_page():
    page = page_of(figures_of(nasty_report()))
    assert NASTY not in page
    assert "<img" not in page
    assert page.count("</script>") == 3
    assert page.count("<!--") == 1
    assert [agent["name"] for agent in data_of(page)["agents"]] == [f"{NASTY}{index}" for index in range(3)]


def test_the_page_needs_no_network_and_carries_the_licence_of_what_it_uses():
    page = page_of(figures_of(nasty_report()))
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//|@import|url\(""", page)
    assert "default-src 'none'" in page
    assert "The MIT License (MIT)" in page


def test_the_page_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "run-1" / "report.html"
    write_page(figures_of(nasty_report()), path)
    write_page(figures_of(nasty_report(4)), path)
    assert len(data_of(path.read_text())["agents"]) == 4
    assert [each.name for each in path.parent.iterdir()] == ["report.html"]


def test_a_run_that_never_began_has_a_report_too(tmp_path):
    figures = figures_of(RunReport("run-1", [Job("run-1", 0, "a", "{}")], []))
    assert "not begun" in page_of(figures)
    assert "0 done, 0 failed, 1 queued\ngo on with:\n    headgate resume run-1\n" in printed(figures)


def printed(figures, width: int = 120) -> str:
    out = io.StringIO()
    print_report(figures, Console(file=out, width=width), page="report.html")
    return out.getvalue()


def test_the_table_of_a_thousand_agents_fits_the_terminal_and_names_those_that_failed():
    jobs = [job(f"agent-{index}", index, state="failed" if index == 777 else "done") for index in range(1000)]
    jobs[777] = job("agent-777", 777, state="failed", error="exit code 1")
    calls = [call(0, 1, 2, agent=f"agent-{index}", cost=index) for index in range(1000)]
    text = printed(figures_of(RunReport("run-1", jobs, calls)), width=80)
    assert len(text.splitlines()) < 40
    assert all(len(line) <= 80 for line in text.splitlines() if not line.startswith("waits"))
    assert "agent-777 failed: exit code 1" in text
    assert "and 980 more" in text
    assert "agent-999 " in text


def failed_report(folder: Path, *, said: str = "", complained: str = "") -> RunReport:
    kept = folder / "agents" / "000001-b-b"
    kept.mkdir(parents=True)
    (kept / "attempt-2.out").write_text(said)
    (kept / "attempt-2.err").write_text(complained)
    jobs = [job("a"), job("b b", 1, state="failed", attempt=2, error="exit code 1")]
    return RunReport("run-1", jobs, [call(0, 1, 2)])


@pytest.mark.parametrize(
    ("written", "log"),
    [
        ({"said": "x", "complained": "why"}, "attempt-2.err"),
        ({"said": "x"}, "attempt-2.out"),
        ({}, None),
    ],
)
def test_a_failed_agents_log_is_named_from_where_the_user_is(tmp_path, monkeypatch, written, log):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "run-1"
    figures = figures_of(failed_report(folder, **written))
    out = io.StringIO()
    print_report(figures, Console(file=out, width=80), page=str(folder / "report.html"))
    path = f"agents/000001-b-b/{log}" if log else None
    assert [line.split()[-1] for line in out.getvalue().splitlines() if "log " in line] == (
        [f"runs/run-1/{path}"] if log else []
    )
    assert "headgate resume run-1 --retry-failed" in out.getvalue()
    assert [agent.get("log") for agent in as_json(figures, folder)["agents"]] == [
        None, f"{folder}/{path}" if log else None,
    ]  # fmt: skip
    assert [agent["log"] for agent in data_of(page_of(figures, folder))["agents"]] == [None, path]


def test_a_path_outside_of_the_working_folder_is_shown_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shown_path(tmp_path.parent / "x") == str(tmp_path.parent / "x")


def test_legends_say_something_before_anyone_points_at_the_plot():
    data = data_of(page_of(figures_of(nasty_report())))
    assert [limit["whole"].split(" %")[1] for limit in data["limits"]] == [
        " on average", " at the end", " at the end",
    ]  # fmt: skip
    assert data["whole"]["calls"] == "3 in all"
    assert data["whole"]["mean_wait_s"] == "1.00 s"
    assert data["costs"]["total"] == "$0.000015 in all"


def test_an_agent_that_cost_next_to_nothing_did_not_cost_nothing():
    data = data_of(page_of(figures_of(nasty_report())))
    assert [agent["cost_text"] for agent in data["agents"]] == ["$0.000005"] * 3
    assert "$0.000005" in printed(figures_of(nasty_report()))


@pytest.mark.parametrize("width", [80, 120])
def test_long_names_of_agents_break_no_number(width):
    calls = [call(0, 1, 2, tokens=123_456_789, agent="x" * 200, output=45_678)]
    lines = printed(figures_of(RunReport("run-1", [job("x" * 200)], calls)), width).splitlines()
    assert lines[2].split()[1:] == (
        ["done", "1", "1", "$0.000005", "1.00", "s", "10", "s", "123M"]
        if width == 80
        else ["done", "1", "1", "$0.000005", "1.00", "s", "10", "s", "123M", "45.7k", "0", "%", "1.00", "s"]
    )
    assert ("too narrow for: output, cached, longest wait" in "\n".join(lines)) == (width == 80)
    assert len(lines[2]) <= width


def test_the_report_says_what_a_user_asks_first():
    text = printed(figures_of(nasty_report()))
    assert "finished after" in text
    assert "2 done, 1 failed" in text
    assert "refused 0 with 429" in text


def test_json_has_everything_and_unknown_is_null():
    shape = as_json(figures_of(nasty_report()))
    assert json.loads(json.dumps(shape)) == shape
    assert shape["jobs"] == {"done": 2, "failed": 1, "running": 0, "queued": 0}
    assert shape["total"]["requests"] == shape["provider"]["served"] == 3
    rate, budget, _ = shape["limits"]
    assert (rate["used"], rate["per"], rate["share_while_waiting"]) == (300, "60s", 0.6667)
    assert (budget["used"], budget["level_used"], budget["average_share"]) == (15, 30, None)
    assert [agent["error"] for agent in shape["agents"]] == [None, NASTY, None]
