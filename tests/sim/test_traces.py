"""Traces are read by what stands in them, and a broken row is told with its file, line, value and what was expected."""

import gzip
import json

import pytest

from headgate.core.errors import CallerError
from headgate.sim.traces import read_trace

AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,4808,10\n2023-11-16 18:17:04.4799600,3180,8\n"
)
ARENA = "req_time_s,client,prompt_len,output_len\n0.0,13,13,199\n2.5,2,36,137\n"
SERVEGEN = "client,time_s,requests_per_s,cv\n0,0,2,1.0\n1,0,0.5,0\n0,600,9,1.0\n"
MOONCAKE = [
    {"timestamp": 0, "input_length": 2000, "output_length": 50, "hash_ids": [1, 2, 3, 4]},
    {"timestamp": 1000, "input_length": 900, "output_length": 5, "hash_ids": [1, 9, 10]},
    {"timestamp": 9000, "input_length": 2600, "output_length": 60, "hash_ids": [1, 2, 3, 4, 5, 6]},
]
TRACELAB = (
    "session_id,arrival_time,round_idx,prefix_len,input_len,output_len,tool_wait_after_ms\n"
    "7,2000,1,2500,300,40,0\n7,2000,0,0,2400,100,1500\n8,500,0,0,900,10,0\n"
)


def tracelab_round(number: int, at: int, *, session: str = "s", **more: object) -> dict[str, object]:
    """Give a round as TraceLab records it: its input comes at a second, its answer ends three seconds later."""
    events = [{"event_type": "user_message", "timestamp": f"2026-06-01T05:40:{at + each:02d}.000Z"} for each in (0, 3)]
    facts = {"session_id": session, "round_index": number, "model": "claude-x", "provider": "claude"}
    return {**facts, "output_tokens": 20, "timing_events": events, **more}


def written(folder, name, text):
    path = folder / name
    path.write_text(text)
    return path


def programs(workload):
    return [program for actor in workload.actors() for program in actor.programs]


def test_azure(tmp_path):
    found = programs(read_trace(written(tmp_path, "azure.csv", AZURE)))
    rounds = [each for program in found for each in program.rounds]
    assert [(each.prompt_tokens, each.output_tokens) for each in rounds] == [(4808, 10), (3180, 8)]
    assert [each.at_s for each in rounds] == pytest.approx([0.0, 0.5])


def test_arena_counts_shares_by_client(tmp_path):
    found = programs(read_trace(written(tmp_path, "arena.csv", ARENA)))
    assert [program.key for program in found] == ["client-13", "client-2"]
    assert programs(read_trace(tmp_path / "arena.csv", hours=2 / 3600)) == found[:1]


def test_mooncake_goes_on_with_the_conversation_whose_blocks_it_has(tmp_path):
    path = tmp_path / "mooncake.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, MOONCAKE)).encode()))
    first, other = programs(read_trace(path))
    assert [each.known_tokens for each in first.rounds] == [0, 2048]
    assert [each.at_s for each in first.rounds] == [0.0, 9.0]
    assert other.rounds[0].known_tokens == 0


def test_servegen_draws_arrivals_at_the_recorded_rates(tmp_path):
    workload = read_trace(written(tmp_path, "rates.csv", SERVEGEN), seed=1)
    by_client = {key: [p for p in programs(workload) if p.key == key] for key in ("client-0", "client-1")}
    assert len(by_client["client-0"]) == pytest.approx(1200, rel=0.15)
    assert len(by_client["client-1"]) == 299  # every 2 s, for it has no variation
    assert programs(workload) == programs(workload)
    assert len(programs(read_trace(tmp_path / "rates.csv", seed=1, hours=0.25))) > 3_000


def test_tracelab_workloads_come_at_their_arrival_and_pause_between_rounds(tmp_path):
    workload = read_trace(written(tmp_path, "tracelab.csv", TRACELAB))
    first, other = programs(workload)
    assert first.session == "session-8"
    assert [(each.prompt_tokens, each.output_tokens, each.known_tokens) for each in other.rounds] == [
        (2_400, 100, 0),
        (2_800, 40, 2_500),
    ]
    assert [(each.at_s, each.pause_s) for each in other.rounds] == [(1.5, 0.0), (0.0, 1.5)]
    assert first.rounds[0].at_s == 0.0
    assert [program.session for program in programs(read_trace(tmp_path / "tracelab.csv", hours=1 / 3600))] == [
        "session-8"
    ]


def test_tracelab_workloads_without_arrivals_are_worked_through_by_agents(tmp_path):
    lines = [line.split(",") for line in TRACELAB.splitlines()]
    text = "\n".join(",".join(line[:1] + line[2:]) for line in lines)
    workload = read_trace(written(tmp_path, "tracelab.csv", text), agents=1)
    assert [actor.starts_s for actor in workload.actors()] == [0.0]
    assert [program.session for program in programs(workload)] == ["session-7", "session-8"]
    with pytest.raises(CallerError, match=r"--hours 1: tracelab\.csv says no time"):
        read_trace(tmp_path / "tracelab.csv", hours=1.0)


def test_tracelab_rounds_make_a_program_of_what_a_person_asks(tmp_path):
    person, tool = {"first_input_event_type": "user_message"}, {"first_input_event_type": "tool_result"}
    rounds = [
        tracelab_round(1, 10, input_tokens_total=9_000, prefix_tokens=8_000, **tool),
        tracelab_round(0, 0, input_tokens_total=8_000, prefix_tokens=6_000, **person),
        tracelab_round(2, 40, input_tokens_total=9_500, prefix_tokens=9_000, **person),
    ]
    path = written(tmp_path, "rounds.jsonl", "\n".join(map(json.dumps, rounds)))
    workload = read_trace(path, agents=3)
    first, second = programs(workload)
    assert first.prefix is not None
    assert (first.prefix.tokens, first.session, first.interactive) == (6_000, second.session, True)
    assert [(each.prompt_tokens, each.known_tokens, each.pause_s) for each in first.rounds] == [
        (8_000, 0, 0.0),
        (9_000, 8_000, 7.0),
    ]
    assert [(each.prompt_tokens, each.known_tokens, each.pause_s) for each in second.rounds] == [(9_500, 9_000, 27.0)]
    assert first.model == "claude-x"


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        (
            "a.csv",
            AZURE.replace("3180", "many"),
            r"a\.csv:3: ContextTokens is 'many'; expected a whole number of tokens",
        ),
        (
            "a.csv",
            AZURE.replace(",8\n", ",-8\n"),
            r"a\.csv:3: GeneratedTokens is '-8'; expected a whole number of tokens",
        ),
        (
            "a.csv",
            AZURE.replace("2023-11-16 18:17:04", "noon"),
            r"a\.csv:3: TIMESTAMP is 'noon.*expected a date and time",
        ),
        ("a.csv", AZURE.replace(",3180,8", ",3180"), r"a\.csv:3: GeneratedTokens is missing"),
        ("a.csv", AZURE.replace(",3180,8", ",3180,8,9"), r"a\.csv:3: it has more values than the header has columns"),
        ("a.csv", ARENA.replace("2.5", "nan"), r"a\.csv:3: req_time_s is 'nan'; expected a time"),
        ("a.csv", ARENA.replace(",36,", ",36.5,"), r"a\.csv:3: prompt_len is '36.5'; expected a whole number"),
        ("a.csv", SERVEGEN.replace("0.5", "inf"), r"a\.csv:3: requests_per_s is 'inf'; expected a number from 0 to"),
        ("a.csv", "when,what\n1,2\n", r"a\.csv:1: the columns are 'when,what'; expected one of azure .*mooncake"),
        ("a.csv", ARENA.splitlines()[0], r"a\.csv: it has no rows"),
        ("a.jsonl", '{"timestamp": 0}\n', r"a\.jsonl:1: input_length is missing"),
        ("a.jsonl", "{", r"a\.jsonl:1: .*expected one JSON object a line"),
        ("a.jsonl", "[1]", r"a\.jsonl:1: expected a JSON object"),
        ("a.jsonl", json.dumps(MOONCAKE[0] | {"hash_ids": "x"}), r"a\.jsonl:1: hash_ids is 'x'; expected a list"),
        ("a.csv.gz", ARENA, r"a\.csv\.gz: it cannot be read"),
        ("a.csv", TRACELAB.replace(",1,2500", ",x,2500"), r"a\.csv:2: round_idx is 'x'; expected a whole number"),
        ("a.csv", TRACELAB.replace("1500", "-1"), r"a\.csv:3: tool_wait_after_ms is '-1'; expected a time, 0 or more"),
        ("a.jsonl", '{"round_index": 0}', r"a\.jsonl:1: input_tokens_total is missing"),
        (
            "a.jsonl",
            json.dumps(tracelab_round(0, 0, input_tokens_total=9, prefix_tokens=1, timing_events=[])),
            r"a\.jsonl:1: timing_events is \[\]; expected a list of events",
        ),
        (
            "a.jsonl",
            json.dumps(tracelab_round(0, 0, input_tokens_total=9, prefix_tokens=1, timing_events=[{"timestamp": "x"}])),
            r"a\.jsonl:1: timing_events\.timestamp is 'x'; expected a date and time",
        ),
    ],
)
def test_a_broken_row_is_told(tmp_path, name, text, told):
    with pytest.raises(CallerError, match=told):
        read_trace(written(tmp_path, name, text))


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        (
            "a.jsonl",
            json.dumps(MOONCAKE[0]).replace(": 0", f": {'9' * 400}", 1),
            r"a\.jsonl:1: \w+ is 9{60}\.\.\.; expected",
        ),
        ("a.jsonl", json.dumps(MOONCAKE[0] | {"input_length": 10**400}), r"a\.jsonl:1: input_length is 10{59}\.\.\.; "),
        ("a.jsonl", json.dumps(MOONCAKE[0]).replace(": 0", f": {'9' * 5_000}", 1), r"a\.jsonl:1: Exceeds the limit"),
        ("a.csv", ARENA.replace("2.5", "9" * 400), r"a\.csv:3: req_time_s is '9{59}\.\.\.; expected a time"),
        (
            "a.jsonl",
            '{"timestamp": ' + "[" * 100_000,
            r"a\.jsonl:1: .*\[\[\.\.\. is nested too deeply; expected one flat",
        ),
        ("a.jsonl", "[" * 100_000, r"a\.jsonl:1: \[{60}\.\.\. is nested too deeply; expected one flat"),
        *(
            ("a.jsonl", '{"timestamp": ' + "[" * deep + "]" * deep + "}", r"a\.jsonl:1: (timestamp is \[|.*too deeply)")
            for deep in range(800, 1_000, 10)
        ),
    ],
)
def test_a_number_of_400_digits_and_what_is_nested_too_deeply_are_told(tmp_path, name, text, told):
    with pytest.raises(CallerError, match=told):
        read_trace(written(tmp_path, name, text))


def test_all_that_is_broken_is_told_at_once(tmp_path):
    text = ARENA + "x,1,1,1\n" * 30
    with pytest.raises(CallerError) as told:
        read_trace(written(tmp_path, "arena.csv", text))
    lines = str(told.value).splitlines()
    assert len(lines) == 21
    assert lines[-1] == "and 10 more"


def test_what_is_no_workload_is_told(tmp_path):
    with pytest.raises(CallerError, match="there is no such file or folder"):
        read_trace(tmp_path / "nothing.csv")
    with pytest.raises(CallerError, match="no recorded sessions"):
        read_trace(tmp_path)


def test_recorded_sessions_are_worked_through_by_agents(tmp_path):
    def line(kind: str, at: int, **more) -> str:
        return json.dumps({"t": f"2026-01-01T00:00:{at:02d}+00:00", "type": kind, **more})

    def answer(at: int, number: int, **usage: int) -> str:
        blocks = [{"type": "text", "text": "word " * 40}]
        return line("assistant", at, id=f"m{number}", model="claude-x", usage=usage, content=blocks)

    for name in ("one", "two", "three"):
        text = "\n".join(
            (
                line("user", 0, content="please"),
                answer(5, 1, input_tokens=10, cache_creation_input_tokens=5_000),
                line("user", 20, content="more"),
                answer(25, 2, input_tokens=10, cache_read_input_tokens=5_000, cache_creation_input_tokens=300),
            )
        )
        (tmp_path / f"{name}.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    workload = read_trace(tmp_path, agents=2)
    assert len(list(workload.actors())) == 2
    rounds = programs(workload)[0].rounds
    assert [(each.prompt_tokens, each.known_tokens, each.pause_s) for each in rounds] == [
        (5_010, 0, 0.0),
        (5_310, 5_010, 15.0),
    ]
    assert all(each.output_tokens > 10 for each in rounds)
