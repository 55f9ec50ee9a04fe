"""The commands and their options.

One rule: every error that a person can act on is one line on stderr, without a traceback, and an exit code.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from headgate.cli.accounts import accounts
from headgate.cli.key_commands import keys_app
from headgate.cli.options import ConfigOption, JsonOption, number, said, whole
from headgate.cli.reconciling import reconcile
from headgate.cli.reserve import reserve_app
from headgate.cli.simulating import simulate
from headgate.cli.status import status
from headgate.core.errors import CallerError, HeadgateError, LimitError

MOST_WORKERS = 64
EXIT_FAILED, EXIT_USAGE, EXIT_LIMITED = 1, 2, 75

app = typer.Typer(
    name="headgate",
    help="The resource manager for LLM agents: who may call now, who waits, for how long and at what cost.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(keys_app, name="keys", no_args_is_help=True)
app.add_typer(reserve_app, name="reserve", no_args_is_help=True)
app.command()(accounts)
app.command()(status)
app.command()(reconcile)
app.command()(simulate)

ScopeOption = Annotated[
    str | None,
    typer.Option(
        parser=said("--scope", "kinds of scopes or scopes, such as account,key:ci, or leave it out for all"),
        metavar="SCOPES",
        help="Only these kinds of scopes or scopes: account,key:ci,run:*.",
    ),
]
_AGENTS = whole("--agents", 1, 100_000)


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        app()
    except HeadgateError as error:
        print(f"headgate: {error}", file=sys.stderr)  # noqa: T201 - the command line speaks on stderr
        sys.exit(exit_code_of(error))
    except KeyboardInterrupt:
        sys.exit(130)


def exit_code_of(error: HeadgateError) -> int:
    """Give the code that a command ends with after an error."""
    if isinstance(error, CallerError):
        return EXIT_USAGE
    return EXIT_LIMITED if isinstance(error, LimitError) else EXIT_FAILED


@app.callback(invoke_without_command=True)
def about(*, version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    """Show the version."""
    if version:
        from importlib.metadata import version as version_of  # noqa: PLC0415 - only this question needs it

        print(f"headgate {version_of('headgate')}")  # noqa: T201 - the answer
        raise typer.Exit


@app.command()
def serve(
    config: ConfigOption = None,
    listen: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="host:port to listen on, instead of the configured one.")
    ] = None,
    workers: Annotated[
        int,
        typer.Option(
            parser=whole("--workers", 1, MOST_WORKERS), metavar="N", help="Processes that serve this port together."
        ),
    ] = 1,
) -> None:
    """Serve the gateway; prints one line with its address when it is ready. SIGTERM drains."""
    from headgate.cli.serving import serve_gateway  # noqa: PLC0415 - heavy, and only this command needs it

    serve_gateway(config, listen, workers)


@app.command()
def run(
    tasks: Annotated[
        Path | None, typer.Argument(help="Tasks (.jsonl, .toml), or a folder of recorded sessions to replay.")
    ] = None,
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- COMMAND ...]", help="After --: the agent's command; {field} is the task's field."),
    ] = None,
    *,
    agents: Annotated[
        int | None, typer.Option(parser=_AGENTS, metavar="N", help="How many work at once; 10 unless you say.")
    ] = None,
    config: ConfigOption = None,
    python: Annotated[
        str | None, typer.Option(metavar="FUNCTION", help="module:function to call for each task, not a command.")
    ] = None,
    gateway: Annotated[
        str | None,
        typer.Option(metavar="URL", help="The address of a gateway that runs already; its key in HEADGATE_KEY."),
    ] = None,
    attempts: Annotated[
        int, typer.Option(parser=whole("--attempts", 1, 1_000), metavar="N", help="How often a task is tried in all.")
    ] = 3,
    speed: Annotated[
        float | None,
        typer.Option(
            parser=number("--speed", 0.001, 1e6),
            metavar="FACTOR",
            help="For recordings: the time between turns passes so much faster; else not.",
        ),
    ] = None,
    demo: Annotated[
        bool, typer.Option("--demo", help="The example: 40 agents under limits that are too small.")
    ] = False,
    real: Annotated[bool, typer.Option("--real", help="With --demo: your Anthropic account, $2 at the most.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a fleet of agents under the limits, durably: killed in any way, it goes on with `headgate resume`."""
    from headgate.cli.running import RunSettings, example_folder, runs_folder, start_run  # noqa: PLC0415 - heavy

    here = Path.cwd()
    if demo:
        tasks = Path(__file__).parent / "demo" / "tasks.jsonl"
        folder = example_folder() / "runs"
        python = "headgate.cli.demo.agent:work"
    elif tasks is None:
        raise CallerError("no tasks given: name a .jsonl or .toml file or a folder of recordings, or try --demo")
    else:
        folder = runs_folder(config)
    settings = RunSettings(
        tasks=str(tasks.resolve()),
        agents=agents or (40 if demo else 10),
        attempts=attempts,
        command=tuple(command or ()),
        function=python,
        config=str(config.resolve()) if config is not None else None,
        gateway=gateway,
        speed=speed,
        folder=str(folder),
        here=str(here),
        demo=demo,
        real=real,
    )
    sys.exit(start_run(settings, as_json=as_json))


@app.command()
def resume(
    run: Annotated[str, typer.Argument(help="The run, as `headgate runs` names it.")],
    config: ConfigOption = None,
    agents: Annotated[
        int | None, typer.Option(parser=_AGENTS, metavar="N", help="How many work at once; as before unless you say.")
    ] = None,
    *,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Queue the failed jobs again, with fresh attempts.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Go on with a run where it was; what a killed runner left is settled and run again."""
    from headgate.cli.running import resume_run  # noqa: PLC0415 - heavy
    from headgate.cli.runs import nothing_to_do, show_run  # noqa: PLC0415 - heavy

    exit_code = nothing_to_do(run, config, retry_failed=retry_failed)
    if exit_code is not None:
        if as_json:
            show_run(run, config, as_json=True)
        sys.exit(exit_code)
    sys.exit(resume_run(run, config, agents, retry_failed=retry_failed, as_json=as_json))


@app.command()
def runs(
    run: Annotated[str | None, typer.Argument(help="Show what became of this run, and its failed jobs' logs.")] = None,
    config: ConfigOption = None,
    delete: Annotated[
        str | None, typer.Option(metavar="RUN", help="Delete this run's jobs and output; the ledger stays.")
    ] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """List the runs, show one, or delete one."""
    from headgate.cli.runs import delete_run, show_run, show_runs  # noqa: PLC0415 - heavy

    if delete is not None:
        if run is not None:
            raise CallerError(f"both RUN ({run}) and --delete {delete} were given; give one of them")
        delete_run(delete, config, as_json=as_json)
    elif run is not None:
        show_run(run, config, as_json=as_json)
    else:
        show_runs(config, as_json=as_json)


@app.command()
def provider(
    listen: Annotated[
        str, typer.Option(metavar="ADDRESS", help="host:port; port 0 takes a free one.")
    ] = "127.0.0.1:8585",
    *,
    requests_per_minute: Annotated[
        int | None,
        typer.Option(parser=whole("--requests-per-minute"), metavar="N", help="Refused beyond it."),
    ] = None,
    input_tokens_per_minute: Annotated[
        int | None,
        typer.Option(
            parser=whole("--input-tokens-per-minute"), metavar="N", help="Uncached input, as Anthropic counts it."
        ),
    ] = None,
    output_tokens_per_minute: Annotated[
        int | None,
        typer.Option(parser=whole("--output-tokens-per-minute"), metavar="N", help="Output, as it is produced."),
    ] = None,
    tokens_per_minute: Annotated[
        int | None,
        typer.Option(parser=whole("--tokens-per-minute"), metavar="N", help="OpenAI's: input and output together."),
    ] = None,
    burst_s: Annotated[
        float,
        typer.Option(
            parser=number("--burst-s", 0.001, 86_400), metavar="S", help="Depth of each bucket, in seconds of its rate."
        ),
    ] = 60.0,
    quantum_s: Annotated[
        float | None,
        typer.Option(
            parser=number("--quantum-s", 0.001, 60),
            metavar="S",
            help="Enforce request rates over this short a period too.",
        ),
    ] = None,
    first_token_s: Annotated[
        float, typer.Option(parser=number("--first-token-s", 0, 86_400), metavar="S", help="Time to the first token.")
    ] = 0.8,
    tokens_per_second: Annotated[
        float, typer.Option(parser=number("--tokens-per-second", 0.001, 1e9), metavar="N", help="Pace after it.")
    ] = 70.0,
    mean_output_tokens: Annotated[
        int,
        typer.Option(
            parser=whole("--mean-output-tokens", 1, 10_000_000),
            metavar="N",
            help="Length of an answer where nothing else says it.",
        ),
    ] = 300,
    sessions: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Recorded sessions to answer from.")] = None,
    tool_calls: Annotated[
        bool, typer.Option("--tool-calls", help="Answer questions that offer tools with a tool call.")
    ] = False,
    fault: Annotated[
        list[str] | None, typer.Option(metavar="KIND=P", help="Such as 529=0.05; may be repeated.")
    ] = None,
    no_limit_headers: Annotated[
        bool, typer.Option("--no-limit-headers", help="Answers say nothing of limits: only 429s teach them.")
    ] = False,
    idle_exit_s: Annotated[
        float | None,
        typer.Option(
            parser=number("--idle-exit-s", 0.001, 1e9), metavar="S", help="End after so long without a request."
        ),
    ] = None,
) -> None:
    """Serve the simulated provider: real wire formats and real limits, for load tests that spend nothing."""
    from headgate.cli.simulated import ProviderOptions, serve_provider  # noqa: PLC0415 - only this command needs it

    serve_provider(
        ProviderOptions(
            listen=listen,
            requests_per_minute=requests_per_minute,
            input_tokens_per_minute=input_tokens_per_minute,
            output_tokens_per_minute=output_tokens_per_minute,
            tokens_per_minute=tokens_per_minute,
            burst_s=burst_s,
            quantum_s=quantum_s,
            first_token_s=first_token_s,
            tokens_per_second=tokens_per_second,
            mean_output_tokens=mean_output_tokens,
            sessions=sessions,
            tool_calls=tool_calls,
            faults=tuple(fault or ()),
            tells_limits=not no_limit_headers,
            idle_exit_s=idle_exit_s,
        )
    )


@app.command()
def usage(
    config: ConfigOption = None,
    by: Annotated[
        str,
        typer.Option(
            "--by",
            metavar="FIELDS",
            help="account, key, team, run, agent, session, model, asked_model, rule, endpoint, state, hour, day.",
        ),
    ] = "",
    since: Annotated[
        str | None, typer.Option(metavar="WHEN", help="7d, 12h, or a time such as 2026-11-01T00:00:00Z.")
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="WHEN", help="In the same words.")] = None,
    *,
    fleet_keys: Annotated[
        bool, typer.Option("--fleet-keys", help="By key: each of the keys of fleets' agents.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what was used and what it cost, over all processes."""
    from headgate.cli.questions import show_usage  # noqa: PLC0415 - heavy

    show_usage(config, by, since, until, fleet_keys=fleet_keys, as_json=as_json)


@app.command()
def limits(config: ConfigOption = None, scope: ScopeOption = None, *, as_json: JsonOption = False) -> None:
    """Show every limit: used, held, free, and when it resets."""
    from headgate.cli.questions import show_limits  # noqa: PLC0415 - heavy

    show_limits(config, scope or "", as_json=as_json)


@app.command()
def forecast(
    config: ConfigOption = None,
    scope: ScopeOption = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Show what each window and budget will have used at its end, and when it runs out."""
    from headgate.cli.forecasting import show_forecast  # noqa: PLC0415 - heavy

    show_forecast(config, scope or "", as_json=as_json)


@app.command()
def capacity(
    model: Annotated[
        str,
        typer.Option(
            parser=said("--model", "a model such as claude-sonnet-4-5"),
            metavar="MODEL",
            help="The model that the agents call.",
        ),
    ],
    config: ConfigOption = None,
    account: Annotated[str | None, typer.Option(help="One account, not all that serve the model.")] = None,
    key: Annotated[str | None, typer.Option(help="The Headgate key that they call with.")] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Show how many more agents can start now, which limit binds, and when that changes."""
    from headgate.cli.forecasting import show_capacity  # noqa: PLC0415 - heavy

    show_capacity(config, model, account, key, as_json=as_json)


@app.command()
def budget(
    config: ConfigOption = None,
    scope: ScopeOption = None,
    *,
    check: Annotated[
        bool, typer.Option("--check", help="End with 75 if one is spent; runs' own lifetime budgets only by --scope.")
    ] = False,
    at: Annotated[
        int | None,
        typer.Option(parser=whole("--at", 1, 100), metavar="PERCENT", help="With --check: or used so far."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what is used, held, pending and free of each window and budget."""
    from headgate.cli.budgets import show_budgets  # noqa: PLC0415 - heavy

    show_budgets(config, scope or "", at, check=check, as_json=as_json)
