"""The configuration. The rule: a test says what a user wrote, and what came of it or was told."""

import copy
import dataclasses
import os
import pickle
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from datetime import UTC
from decimal import Decimal
from pathlib import Path

import pytest
from genai_prices.data import providers

from headgate.adapters.config import (
    Config,
    ConfiguredAccount,
    ConfiguredKey,
    Secret,
    Server,
    Store,
    Timeouts,
    load_config,
)
from headgate.adapters.config.document import MOST_FILE_BYTES
from headgate.adapters.config.limits import LIMIT_WORDS
from headgate.adapters.prices import PriceOverride
from headgate.adapters.providers.vendors.catalogue import VENDORS
from headgate.core.accounts import Account
from headgate.core.errors import ConfigError
from headgate.core.limits import Window
from headgate.core.retries import RetryRule
from headgate.core.scopes import limits_for
from headgate.core.spans import Calendar, Lifetime
from headgate.core.usage import Dialect

ROOT = Path(__file__).parents[2]
EXAMPLE = (ROOT / "examples/headgate.toml").read_text(encoding="utf-8")
REFERENCE = (ROOT / "docs/reference/configuration.md").read_text(encoding="utf-8")
KEY, OTHER_KEY = "sk-ant-the-key-itself", "sk-the-other-key"
ENVIRON = {"ANTHROPIC_API_KEY": KEY, "OPENAI_API_KEY": OTHER_KEY, "HEADGATE_ADMIN_TOKEN": "token", "HOME": "/home/me"}
ACCOUNT = '[[account]]\nname = "main"\nprovider = "anthropic"\napi_key = "env:ANTHROPIC_API_KEY"\n'


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Config]:
    def write_and_load(text: str | bytes, environ: dict[str, str] = ENVIRON) -> Config:
        path = tmp_path / "headgate.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_config(path, environ)

    return write_and_load


@pytest.fixture
def problems(load: Callable[..., Config], tmp_path: Path) -> Callable[..., list[str]]:
    """Load what cannot be used; give what is told, without the folder."""

    def told(text: str | bytes, environ: dict[str, str] = ENVIRON) -> list[str]:
        with pytest.raises(ConfigError) as raised:
            load(text, environ)
        assert KEY not in str(raised.value)
        return str(raised.value).replace(f"{tmp_path}{os.sep}", "").split("\n")

    return told


def _account(name: str, vendor: Dialect, models: tuple[str, ...]) -> Account:
    return Account(name, vendor, models, vendor=vendor, counting=vendor)


def test_a_whole_file_is_read(load: Callable[..., Config], tmp_path: Path) -> None:
    config = load(EXAMPLE)
    assert config.path == tmp_path / "headgate.toml"
    assert config.server == Server("127.0.0.1", 8484, None, 33_554_432, 600.0, 30.0)
    assert config.store == Store(tmp_path / "headgate.sqlite", "normal")
    assert config.accounts == (
        ConfiguredAccount(
            _account("main", "anthropic", ("claude-*",)), "https://api.anthropic.com", Secret(KEY), idle_s=120
        ),
        ConfiguredAccount(
            _account("openai", "openai", ("gpt-*", "o3*", "o4*", "text-embedding-*")),
            "https://api.openai.com/v1",
            Secret(OTHER_KEY),
        ),
    )
    assert config.keys == (ConfiguredKey("ci", "search", (("service", "ci"),)),)
    assert config.prices == (
        PriceOverride(
            "my-finetune-*", Decimal("0.60"), Decimal("2.40"), Decimal("0.15"), Decimal("0.60"), Decimal("0.60")
        ),
    )
    assert config.retries == RetryRule(4, 0.5, 30.0)
    assert config.timeouts == Timeouts(10.0, 600.0, 300.0, 5.0, 10.0)
    assert len(config.limits) == 16
    ci_budget = Window("", "key:ci", "micro_usd", 450_000, Calendar("day", UTC))
    assert ci_budget in [rule.template for rule in config.limits]


def test_an_empty_file_is_all_defaults_and_takes_the_accounts_of_the_environment(load: Callable[..., Config]) -> None:
    assert load("") == dataclasses.replace(load_config(None, ENVIRON), path=load("").path)
    limited = load('[[limit]]\nscope = "account:anthropic"\nslots = 4\n')
    assert [rule.scope for rule in limited.limits] == ["account:anthropic"]


def test_without_a_file_the_environment_s_keys_are_the_accounts() -> None:
    config = load_config(None, ENVIRON)
    assert [each.account for each in config.accounts] == [
        _account("anthropic", "anthropic", VENDORS["anthropic"].models),
        _account("openai", "openai", VENDORS["openai"].models),
    ]
    assert [each.api_key and each.api_key.reveal() for each in config.accounts] == [KEY, OTHER_KEY]
    assert config.limits == ()
    assert [each.account.name for each in load_config(None, {"OPENAI_API_KEY": "k"}).accounts] == ["openai"]
    assert load_config(None, {"ANTHROPIC_API_KEY": ""}).accounts == ()


OTHER_ENDPOINTS = {
    "ada",
    "babbage",
    "babbage-002",
    "curie",
    "davinci",
    "davinci-002",
    "moderation",
    "tts-1",
    "tts-1-hd",
}
OTHER_ENDPOINTS |= {"whisper-1"}


def test_an_account_at_its_vendor_serves_that_vendor_s_models_and_no_other_s(load: Callable[..., Config]) -> None:
    """An OpenAI account was listed as serving `claude-haiku-4-5`."""
    claude, gpt = (each.account for each in load_config(None, ENVIRON).accounts)
    listed = {provider.id: {model.id for model in provider.models} for provider in providers}
    assert {model for model in listed["anthropic"] if not claude.serves(model)} == set()
    assert {model for model in listed["openai"] if not gpt.serves(model)} <= OTHER_ENDPOINTS
    assert not any(gpt.serves(model) for model in listed["anthropic"])
    assert not any(claude.serves(model) for model in listed["openai"])
    entry = '[[account]]\nname = "a"\nprovider = "openai"\napi_key = "env:OPENAI_API_KEY"\n'
    for more, models in (
        ("", gpt.models),
        ('base_url = "https://api.openai.com/v1/"', gpt.models),
        ('base_url = "http://127.0.0.1:8000/v1"', ("*",)),
        ('models = ["*"]', ("*",)),
    ):
        assert load(entry + more).accounts[0].account.models == models


def test_headgate_does_not_call_itself_from_inside_an_agent_s_shell() -> None:
    inside = ENVIRON | {"ANTHROPIC_BASE_URL": "http://127.0.0.1:8484", "OPENAI_BASE_URL": "http://127.0.0.1:8484/v1"}
    urls = [each.base_url for each in load_config(None, inside).accounts]
    assert urls == ["https://api.anthropic.com", "https://api.openai.com/v1"]


@pytest.mark.parametrize(
    ("environ", "path"),
    [
        ({"HEADGATE_HOME": "/srv/gate", "XDG_STATE_HOME": "/state", "HOME": "/home/me"}, "/srv/gate"),
        ({"XDG_STATE_HOME": "/state", "HOME": "/home/me"}, "/state/headgate"),
        ({"XDG_STATE_HOME": "relative", "HOME": "/home/me"}, "/home/me/.local/state/headgate"),
        ({"HOME": "/home/me"}, "/home/me/.local/state/headgate"),
    ],
)
def test_the_store_has_a_place_when_nobody_says_one(environ: dict[str, str], path: str) -> None:
    assert load_config(None, environ).store.path == Path(path) / "headgate.sqlite"


def test_a_store_is_beside_the_file_absolute_or_at_home(load: Callable[..., Config], tmp_path: Path) -> None:
    def path(url: str) -> Path:
        return load(f'[store]\nurl = "{url}"\nsynchronous = "full"').store.path

    assert path("sqlite:///data/gate.db") == tmp_path / "data/gate.db"
    assert path("sqlite:////var/gate.db") == Path("/var/gate.db")
    assert path("sqlite:///~/gate.db") == Path("/home/me/gate.db")
    assert load('[store]\nsynchronous = "full"').store.synchronous == "full"


@pytest.mark.parametrize(
    ("given_url", "used"),
    [
        ("https://gate.example.com", "https://gate.example.com"),
        ("https://gate.example.com/", "https://gate.example.com"),
        ("https://gate.example.com/v1/", "https://gate.example.com/v1"),
        ("https://gate.example.com:8443/openai/v1/", "https://gate.example.com:8443/openai/v1"),
        ("http://[::1]:9000", "http://[::1]:9000"),
    ],
)
def test_a_base_url_is_kept_as_it_is_written_but_for_a_slash_at_its_end(
    load: Callable[..., Config], given_url: str, used: str
) -> None:
    assert load(f'{ACCOUNT}base_url = "{given_url}"').accounts[0].base_url == used


def test_addresses_to_listen_on(load: Callable[..., Config]) -> None:
    for written, host, port in (("0.0.0.0:80", "0.0.0.0", 80), ("[::1]:0", "::1", 0), ("localhost:9", "localhost", 9)):
        server = load(f'[server]\nlisten = "{written}"').server
        assert (server.host, server.port) == (host, port)


def test_the_more_exact_of_two_rules_for_a_scope_holds_whatever_their_order(load: Callable[..., Config]) -> None:
    own, each = (
        '[[limit]]\nscope = "run:big"\nusd_per_lifetime = 50\n',
        '[[limit]]\nscope = "run:*"\nusd_per_lifetime = 5\n',
    )
    for text in (own + each, each + own):
        rules = load(text).limits
        assert [limit.amount for limit in limits_for(rules, ["run:big"], "m")] == [50_000_000]
        assert [limit.amount for limit in limits_for(rules, ["run:other"], "m")] == [5_000_000]


def test_a_key_s_own_limits_are_rules_of_its_scope(load: Callable[..., Config]) -> None:
    rules = load('[[key]]\nname = "ci"\nusd_per_lifetime = 3').limits
    assert [(rule.scope, rule.template) for rule in rules] == [
        ("key:ci", Window("", "key:ci", "micro_usd", 3_000_000, Lifetime()))
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('x = "\n', ["headgate.toml:1: not TOML: Illegal character '\\n' at column 6"]),
        ("[server]\n\nlisten", ["headgate.toml:3: not TOML: Expected '=' after a key in a key/value pair at the end"]),
        ("[server]\nx = 1\nx = 2", ["headgate.toml:3: not TOML: Cannot overwrite a value at the end of the file"]),
        (b"[server]\nx = '\xff'", ["headgate.toml:2: not UTF-8 text: expected the file saved as UTF-8"]),
        (f"a = 1\nb = {'9' * 5000}", ["headgate.toml:2: not TOML: a number has too many digits"]),
        (f"a = 1\nb = {'[' * 50_000}", ["headgate.toml:2: not TOML: arrays or tables are nested too deeply"]),
        ("[sever]", ["headgate.toml:1: sever: unknown; did you mean server?"]),
        ('"a\\nb\\u001b" = 1', ['headgate.toml:1: "a\\nb\\u001b": unknown; expected one of account, key, lane']),
        ("[cache]", ["headgate.toml:1: [cache]: this version of Headgate does not have it; remove the table"]),
        ("[[alert]]", ["headgate.toml:1: [alert]: this version of Headgate does not have it; remove the table"]),
        ("[[server]]", ["headgate.toml:1: server: expected one table, written [server]"]),
        ("\n[limit]", ["headgate.toml:2: limit: expected tables, each written [[limit]]"]),
        ("limit = [1]", ["headgate.toml:1: limit: expected tables, each written [[limit]]"]),
        ('[server]\nlisten = "8484"', ['headgate.toml:2: [server] listen = "8484": expected an address such as "127']),
        ("[server]\nallowed_hosts = []", ["headgate.toml:2: [server] allowed_hosts = [...]: expected a list of names"]),
        (
            '[server]\nallowed_hosts = ["a", "http://b"]',
            [
                'headgate.toml:2: [server] allowed_hosts = "http://b": expected a list of names of hosts without ports',
            ],
        ),
        ('[server]\nlisten = "::1:8484"', ['headgate.toml:2: [server] listen = "::1:8484": expected an address']),
        ('[server]\nlisten = "a:65536"', ['headgate.toml:2: [server] listen = "a:65536": expected a port of at most']),
        ("[server]\nlisten = 8484", ["headgate.toml:2: [server] listen = 8484: expected an address"]),
        ("server.max_wait_s = inf", ["headgate.toml:1: [server] max_wait_s = Infinity: expected a number of seconds"]),
        (f"server.max_wait_s = 1e{'9' * 30}", ["headgate.toml:1: [server] max_wait_s = NaN: expected a number of sec"]),
        ("[server]\ndrain = 3", ["headgate.toml:2: [server] drain: unknown; did you mean drain_s?"]),
        ('[store]\nurl = "postgres://h/d"', ['headgate.toml:2: [store] url = "postgres://h/d": expected "sqlite:///']),
        ('[store]\nurl = "postgres://u:p@h/d"', ["headgate.toml:2: [store] url = (not shown): expected"]),
        (
            '[store]\nurl = "sqlite:///:memory:"',
            ['headgate.toml:2: [store] url = "sqlite:///:memory:": expected the p'],
        ),
        ('[store]\nsynchronous = "off"', ['headgate.toml:2: [store] synchronous = "off": expected "normal" or "full"']),
        ("[retries]\nattempts = 100", ["headgate.toml:2: [retries] attempts = 100: expected at most 20"]),
        (
            "[retries]\nmost_delay_s = 1\nfirst_delay_s = 2.5",
            ["headgate.toml:2: [retries] most_delay_s: expected at least first_delay_s, which is 2.5"],
        ),
        ("[timeouts]\nidle_s = 0", ["headgate.toml:2: [timeouts] idle_s = 0: expected at least 0.001"]),
        (
            "\n[[account]]",
            [f"headgate.toml:2: [[account]] has no {word}" for word in ("provider", "name", "api_key")],
        ),
        (
            f'{ACCOUNT}models = [\n  "claude-*",\n  "a b",\n]',
            ['headgate.toml:7: [[account]] models = "a b": expected a model or a pattern'],
        ),
        (f"{ACCOUNT}models = []", ["headgate.toml:5: [[account]] models = [...]: expected a list of models"]),
        (f'{ACCOUNT}base_url = "https://me:pw@h"', ["headgate.toml:5: [[account]] base_url = (not shown): expected a"]),
        (
            f'{ACCOUNT}base_url = "https://h:x"',
            ['headgate.toml:5: [[account]] base_url = "https://h:x": expected a URL'],
        ),
        (f'{ACCOUNT}base_url = "h"', ['headgate.toml:5: [[account]] base_url = "h": expected a URL such as']),
        (f"{ACCOUNT}reconcile = 1", ["headgate.toml:5: [[account]] reconcile = 1: expected true or false"]),
        (ACCOUNT + ACCOUNT, ["headgate.toml:6: [[account]] name: line 2 has the same"]),
        (
            f'{ACCOUNT}[[limit]]\nscope = "account:mian"\nslots = 1',
            ['headgate.toml:6: [[limit]] scope = "account:mian": no such account; configured: main'],
        ),
        (f"{ACCOUNT}[[limit]]\nslots = 1", ["headgate.toml:5: [[limit]] has no scope"]),
        (f'{ACCOUNT}[[limit]]\nscope = "run:*"', ["headgate.toml:5: [[limit]]: limits nothing; expected a limit such"]),
        (
            '[[limit]]\nscope = "run:*"\nusd_per_day = 1\n[[limit]]\nscope = "run:*"\nmodels = "*"\nusd_per_day = 2',
            ["headgate.toml:7: usd_per_day: run:* already has this limit from usd_per_day in line 3"],
        ),
        (
            '[[key]]\nname = "ci"\nslots = 1\n[[limit]]\nscope = "key:ci"\nslots = 2',
            ["headgate.toml:3: slots: key:ci already has this limit from slots in line 6"],
        ),
        (
            '[[key]]\nname = "ci"\n[[key]]\nname = "ci"\ncolour = "x"',
            [
                "headgate.toml:4: [[key]] name: line 2 has the same",
                "headgate.toml:5: [[key]] colour: unknown; expected a limit such as",
            ],
        ),
        ('[[key]]\nname = "a b"', ['headgate.toml:2: [[key]] name = "a b": expected a name of letters']),
        (
            '[[key]]\nname = "ci"\n[key.tags]\na = "b"\nc = 1',
            ["headgate.toml:5: [[key]] tags c = 1: expected a name of letters"],
        ),
        (
            2 * '[[price]]\nmodel = "m"\ninput = 1\noutput = 1\n',
            ["headgate.toml:6: [[price]] model: line 2 has the same"],
        ),
        (
            '[[price]]\nmodel = "m"\ninput = -1',
            ["headgate.toml:1: [[price]] has no output", "headgate.toml:3: [[price]] input = -1: expected at least 0"],
        ),
    ],
)
def test_what_is_wrong_is_told_with_its_line(
    problems: Callable[..., list[str]], text: str | bytes, expected: list[str]
) -> None:
    told = problems(text)
    assert len(told) == len(expected)
    for line, start in zip(told, expected, strict=True):
        assert line.startswith(start)


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ("main", "expected a scope such as account:main"),
        ("acount:main", "'acount' is unknown; did you mean account?"),
        ("planet:mars", "'planet' is unknown; expected one of account, agent, key, run, session, tag, team"),
        ("run:", "expected a name of 1 to 200 letters (A to Z), digits and . _ - : @ / # + = after run:, or a pattern"),
        ("run:a b", "expected a name of 1 to 200 letters"),
        ("run:[ab]", "expected a name of 1 to 200 letters"),
        ("run:\u00fc", "expected a name of 1 to 200 letters (A to Z)"),
        ("agent:a|nobody", "expected one of account, key, team, "),
        ("tag:team", "expected tag:name=value, where * stands for each value by itself"),
        ("tag:=x", "expected tag:name=value"),
        ("*", "expected a scope such as account:main"),
        (f"run:{'x' * 300}", "expected a scope such as account:main"),
    ],
)
def test_a_scope_that_cannot_be_is_refused(problems: Callable[..., list[str]], scope: str, expected: str) -> None:
    (told,) = problems(f'[[limit]]\nscope = "{scope}"\nslots = 1')
    assert expected in told
    assert told.startswith("headgate.toml:2: [[limit]] scope = ")
    assert len(told) < 250


def test_every_problem_is_told_at_once_in_the_order_of_the_file_and_up_to_a_bound(
    problems: Callable[..., list[str]],
) -> None:
    told = problems("\n".join(f"x{number} = 1" for number in range(1, 101)))
    assert [line.split(":")[1] for line in told] == [str(number) for number in range(1, 22)]
    assert told[-1] == "headgate.toml:21: and 80 more from here on"


@pytest.mark.parametrize("where", ["api_key", "name", "base_url", "provider", "unheard_of"])
def test_a_key_that_was_pasted_into_the_file_is_refused_and_not_shown(
    problems: Callable[..., list[str]], where: str
) -> None:
    assert problems(f'{ACCOUNT}[[account]]\n{where} = "{KEY}"')


@pytest.mark.parametrize(
    ("written", "environ", "expected"),
    [
        ("plain-token", {}, 'admin_token = (not shown): expected "env:NAME"'),
        ("env:my token", {}, 'admin_token = (not shown): expected "env:NAME"'),
        ("env:TOKEN", {}, 'admin_token = "env:TOKEN": the environment variable TOKEN is not set'),
        ("env:TOKEN", {"TOKEN": " \n"}, "the environment variable TOKEN is empty"),
        (
            "env:TOKEN",
            {"TOKEN": f"{KEY}\r\nx: y"},
            "the environment variable TOKEN is not one line of plain ASCII text",
        ),
        ("env:TOKEN", {"TOKEN": f"{KEY}é"}, "the environment variable TOKEN is not one line of plain ASCII text"),
    ],
)
def test_a_secret_is_named_and_its_value_never_told(
    problems: Callable[..., list[str]], written: str, environ: dict[str, str], expected: str
) -> None:
    (told,) = problems(f'[server]\nadmin_token = "{written}"', environ)
    assert expected in told
    assert "plain-token" not in told


def test_a_secret_comes_without_the_white_space_around_it(load: Callable[..., Config]) -> None:
    token = load('[server]\nadmin_token = "env:T"', {"T": " abc\n"}).server.admin_token
    assert token is not None
    assert token.reveal() == "abc"


def test_a_variable_that_can_be_no_key_is_told_even_without_a_file() -> None:
    with pytest.raises(ConfigError, match="OPENAI_API_KEY is not one line"):
        load_config(None, {"OPENAI_API_KEY": "a\nb"})


def test_no_representation_shows_a_secret(load: Callable[..., Config]) -> None:
    config = load(EXAMPLE)
    secret = config.accounts[0].api_key
    assert secret.reveal() == KEY
    shown = f"{config!r} {config} {dataclasses.asdict(config)} {secret} {secret!r} {[secret]} {secret!s:>40}"
    assert KEY not in shown
    assert copy.deepcopy(secret) == secret
    assert secret != Secret("another")
    assert secret != KEY
    assert hash(secret) == hash(Secret(KEY))
    assert pickle.loads(pickle.dumps(secret)) == secret


def test_a_file_that_is_missing_unreadable_or_far_too_large_is_told(
    tmp_path: Path, problems: Callable[..., list[str]]
) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.toml: there is no such file$"):
        load_config(tmp_path / "nothing.toml", {})
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_config(tmp_path, {})
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(Path("a\0b"), {})
    assert problems("#" * (MOST_FILE_BYTES + 1))[0].startswith("headgate.toml:1: the file is larger than 1,048,576 byt")


def test_line_ends_and_a_byte_order_mark_of_other_systems_are_read(problems: Callable[..., list[str]]) -> None:
    assert problems(b"\xef\xbb\xbf[server]\r\n\r\ndrain_s = -1\r\n") == [
        "headgate.toml:3: [server] drain_s = -1: expected at least 0"
    ]


def reference_examples() -> list[str]:
    return re.findall(r"```toml\n(.*?)```", REFERENCE, re.DOTALL)


@pytest.mark.parametrize("text", reference_examples(), ids=lambda text: text.split("\n")[0])
def test_the_examples_of_the_reference_load(load: Callable[..., Config], text: str) -> None:
    assert isinstance(load(text), Config)


def test_the_reference_names_every_word() -> None:
    words = {*LIMIT_WORDS, "slots", "burst_s", "quantum_s", "timezone", "scope", "models"}
    tables = tomllib.loads(EXAMPLE)
    for table in tables.values():
        for entry in table if isinstance(table, list) else [table]:
            words |= entry.keys()
    words |= {"admin_token", "base_url", "reconcile", "HEADGATE_HOME", "XDG_STATE_HOME"}
    spans = {word.partition("_per_")[2] for word in LIMIT_WORDS}
    named = {word for word in words if f"`{word}`" in REFERENCE or word in LIMIT_WORDS}
    assert named == words
    assert all(f"`{span}`" in REFERENCE for span in spans)


def test_importing_it_reads_nothing_and_loads_no_price_list() -> None:
    code = "import sys, headgate.adapters.config; assert not {'genai_prices', 'pydantic', 'asyncio'} & set(sys.modules)"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


def test_a_lane_that_never_counts_is_told(problems: Callable[..., list[str]]) -> None:
    """Of two entries for the same lane the second was left out without a word."""
    lane = '[[lane]]\nscope = "run:*"\npolicy = "fifo"\n'
    (told,) = problems(lane + lane.replace("fifo", "fair"))
    assert told.endswith(": an earlier one in line 1 has the same scope and models; keep one of both")
    assert "never counts" not in "".join(problems(2 * lane.replace("run:*", "")))
