"""Windows of models in a configuration: with a price or without, and what cannot be one is told with its line."""

from decimal import Decimal
from pathlib import Path

import pytest

from headgate.adapters.config import load_config
from headgate.adapters.prices import PriceOverride
from headgate.adapters.windows import WindowOverride
from headgate.core.errors import ConfigError


def load(folder: Path, text: str):
    path = folder / "headgate.toml"
    path.write_text(text)
    return load_config(path, {})


def test_an_entry_may_say_what_a_model_costs_how_far_it_reaches_or_both(tmp_path):
    config = load(
        tmp_path,
        '[[price]]\nmodel = "both"\ninput = 1\noutput = 2\ncontext_window = 32_768\nmax_output_tokens = 4_096\n'
        '[[price]]\nmodel = "far"\ncontext_window = 1_000_000\n'
        '[[price]]\nmodel = "dear"\ninput = 3\noutput = 4\n'
        '[[price]]\nmodel = "turns-*"\nserver_tool_turns = 3\n',
    )
    assert config.prices == (
        PriceOverride("both", Decimal(1), Decimal(2)),
        PriceOverride("dear", Decimal(3), Decimal(4)),
    )
    assert config.windows == (
        WindowOverride("both", 32_768, 4_096),
        WindowOverride("far", 1_000_000),
        WindowOverride("turns-*", server_tool_turns=3),
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("", "has no input"),
        ("context_window = 0", "context_window = 0: expected at least 1"),
        ('max_output_tokens = "many"', "max_output_tokens"),
        ("context_window = 9\noutput = 1", "has no input"),
        ("server_tool_turns = 0", "expected at least 1"),
    ],
)
def test_what_cannot_be_one_is_told(tmp_path, words, told):
    with pytest.raises(ConfigError, match=told):
        load(tmp_path, f'[[price]]\nmodel = "m"\n{words}\n')


def test_a_window_that_cannot_be_used_does_not_ask_for_prices(tmp_path):
    with pytest.raises(ConfigError) as told:
        load(tmp_path, '[[price]]\nmodel = "m"\ncontext_window = 0\n')
    assert "has no" not in str(told.value)
