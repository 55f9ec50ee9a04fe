"""What differs between two configurations, as people are told it, and what needs a restart."""

from pathlib import Path

import pytest

from headgate.adapters.config import changes_in_words, load_config, needs_restart

ACCOUNT = '[[account]]\nname = "main"\nprovider = "anthropic"\napi_key = "env:K"\n'
LIMIT = '[[limit]]\nscope = "account:main"\nrequests_per_minute = 60\nusd_per_day = 5\n'
CI = '[[key]]\nname = "ci"\n'
NIGHTLY = '[[maintenance]]\ncron = "30 2 * * *"\nduration = "1h"\n'
RULE = '[[model_rule]]\nname = "small"\nmax_input_tokens = 10\nuse = "claude-haiku-4-5"\n'
QUIET = '[[model_rule]]\nname = "quiet"\neffort = "low"\n'
PRICE = '[[price]]\nmodel = "qwen*"\ninput = 1\noutput = 2\n'


def load(folder: Path, text: str):
    path = folder / "headgate.toml"
    path.write_text(text)
    return load_config(path, {"K": "secret", "L": "other", "HEADGATE_HOME": str(folder)})


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (ACCOUNT + LIMIT, ACCOUNT + LIMIT, []),
        (
            LIMIT,
            LIMIT.replace("60", "90"),
            [
                (
                    "limit account:main: 90 requests per minute, at most 75 at once instead of 60 requests per minute, "
                    "at most 50 at once"
                )
            ],
        ),
        (LIMIT, LIMIT.replace("= 5", "= 0.5"), ["limit account:main: $0.50 per day instead of $5.00 per day"]),
        (
            LIMIT,
            LIMIT.replace("_day", "_week") + 'models = "claude-*"\nslots = 2\n',
            [
                "limit account:main: 60 requests per minute, at most 50 at once, which is gone",
                "limit account:main: $5.00 per day, which is gone",
                "limit account:main (claude-*): 60 requests per minute, at most 50 at once, which is new",
                "limit account:main (claude-*): $5.00 per week, which is new",
                "limit account:main (claude-*): 2 calls at once, which is new",
            ],
        ),
        (CI, CI + 'team = "a"\n', ['key ci: team = "a" instead of none']),
        (CI, CI + 'tags = { stage = "test" }\n', ['key ci: tags = {stage = "test"} instead of []']),
        (CI, CI.replace("ci", "cd"), ["key ci: is gone", "key cd: is new"]),
        ("", '[scheduler]\npolicy = "fair"\n', ['scheduler: policy = "fair" instead of "fifo"']),
        (
            NIGHTLY,
            NIGHTLY.replace("1h", "2h") + 'timezone = "Europe/Berlin"\nmodels = "claude-*"\naction = "refuse"\n',
            [
                'maintenance "30 2 * * *" (Europe/Berlin, 120 min) for all calls (claude-*): refuse, which is new',
                'maintenance "30 2 * * *" (UTC, 60 min) for all calls: hold, which is gone',
            ],
        ),
        (NIGHTLY, NIGHTLY, []),
        (RULE, RULE.replace("10", "20"), ["model_rule small: max_input_tokens = 20 instead of 10"]),
        (RULE + QUIET, QUIET + RULE, ["model_rule: the order is quiet, small now"]),
        (PRICE, PRICE.replace("1", "0.5"), ["price qwen*: input_usd_per_mtok = 0.5 instead of 1"]),
        (
            PRICE,
            PRICE + "context_window = 9\n",
            ["price (how far it reaches) qwen*: is new"],
        ),
        ("", "[retries]\nattempts = 2\n", ["retries: attempts = 2 instead of 4"]),
    ],
)
def test_what_differs_is_told_in_words(tmp_path, before, after, told):
    one, other = (load(tmp_path, ACCOUNT + text.removeprefix(ACCOUNT)) for text in (before, after))
    assert changes_in_words(one, other) == told
    assert needs_restart(one, other) == []


@pytest.mark.parametrize(
    ("after", "told"),
    [
        (ACCOUNT + '[server]\nlisten = "127.0.0.1:1"\n', ["[server] listen"]),
        (ACCOUNT + "[server]\nmax_wait_s = 1\n", ["[server] max_wait_s"]),
        (ACCOUNT + '[store]\nurl = "sqlite:///other.sqlite"\n', ["[store] path"]),
        (ACCOUNT + "[timeouts]\nidle_s = 1\n", ["[timeouts] idle_s"]),
        (ACCOUNT.replace("env:K", "env:L"), ["[[account]] main"]),
        (ACCOUNT + ACCOUNT.replace("main", "second"), ["[[account]] second"]),
        (ACCOUNT.replace("main", "second"), ["[[account]] main", "[[account]] second"]),
    ],
)
def test_what_needs_a_restart_is_named(tmp_path, after, told):
    one, other = load(tmp_path, ACCOUNT), load(tmp_path, after)
    assert needs_restart(one, other) == told


def test_of_equal_accounts_the_first_serves_so_their_order_needs_a_restart(tmp_path):
    second = ACCOUNT.replace("main", "second")
    one, other = load(tmp_path, ACCOUNT + second), load(tmp_path, second + ACCOUNT)
    assert needs_restart(one, other) == ["[[account]] second", "[[account]] main"]
