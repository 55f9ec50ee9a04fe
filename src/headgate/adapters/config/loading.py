"""Loading: from the tables of a file, or from the environment, to a configuration.

One rule: one function for each table, and what a table says is checked there; what must agree between tables is checked
in `load_config`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

from headgate.adapters.config.accounts import accounts_of_environment, read_account
from headgate.adapters.config.budgets import note_conflicts, parents_of_keys
from headgate.adapters.config.document import Document, document_of, read_text
from headgate.adapters.config.limits import (
    ReadRule,
    close_limits,
    note_duplicates,
    read_limits,
    read_models,
    scope_among,
)
from headgate.adapters.config.maintenance import read_maintenance
from headgate.adapters.config.model_rules import read_model_rule
from headgate.adapters.config.scheduling import read_scheduling, weight
from headgate.adapters.config.settings import (
    WHILE_WAITING,
    Config,
    ConfiguredAccount,
    ConfiguredKey,
    Server,
    Store,
    Synchronous,
    Timeouts,
)
from headgate.adapters.config.tables import Table, Unfit, boolean, choice, decimal, number, whole
from headgate.adapters.config.values import (
    default_store_path,
    host_names,
    listen,
    model_glob,
    model_globs,
    name,
    secret,
    sqlite,
    timeout_s,
)
from headgate.adapters.prices import PriceOverride
from headgate.adapters.providers.endpoints import ENDPOINT_NAMES
from headgate.adapters.windows import WindowOverride
from headgate.core.retries import RetryRule
from headgate.core.scheduling import MOST_PRIORITY, Scheduling

__all__ = ["load_config"]

DAY_S = 86_400
MOST_BODY_BYTES = 1024 * 1024 * 1024
MOST_ATTEMPTS = 20

_SYNCHRONOUS: Mapping[str, Synchronous] = {"normal": "normal", "full": "full"}


def load_config(path: Path | None, environ: Mapping[str, str], text: str | None = None) -> Config:
    """Read a configuration file, or without one what the environment says; `text` is what stood in it once.

    The result has no accounts where neither names one: what to tell the user then is the caller's affair.

    Raises:
        ConfigError: the file is missing, is no TOML, or has values that cannot be used, one line for each problem; or
            a variable holds what can be no key.
    """
    if path is None:
        return Config(store=Store(default_store_path(environ)), accounts=accounts_of_environment(environ))
    text = read_text(path) if text is None else text
    document = document_of(text, path)
    accounts = tuple(read_account(table, environ) for table in document.tables("account"))
    if not document.tables("account"):
        accounts = accounts_of_environment(environ)
    rules = _read_limit_tables(document, accounts)
    keys = tuple(_read_key(table, rules) for table in document.tables("key"))
    note_duplicates(document.problems, rules)
    for array, word in (("account", "name"), ("key", "name"), ("price", "model"), ("model_rule", "name")):
        _note_repeated(document, array, word)
    priced = [_read_price(table) for table in document.tables("price")]
    config = Config(
        store=_read_store(document.table("store"), path.parent, environ),
        path=path,
        text=text,
        server=_read_server(document.table("server"), environ),
        accounts=accounts,
        # Where two rules give a scope the same limit, the core takes the later one: let that be the more exact.
        limits=tuple(sorted((read.rule for read in rules), key=lambda rule: "*" not in rule.scope)),
        keys=keys,
        prices=tuple(price for price, _window in priced if price is not None),
        windows=tuple(window for _price, window in priced if window is not None),
        retries=_read_retries(document.table("retries")),
        timeouts=_read_timeouts(document.table("timeouts")),
        scheduling=_with_weights(read_scheduling(document, _named(accounts)), keys),
        maintenance=tuple(
            read
            for table in document.tables("maintenance")
            if (read := read_maintenance(table, _named(accounts))) is not None
        ),
        model_rules=tuple(
            read_model_rule(table, place, [each.account for each in accounts])
            for place, table in enumerate(document.tables("model_rule"), start=1)
        ),
    )
    note_conflicts(document.problems, rules, parents_of_keys(keys), _named(accounts))
    document.problems.raise_any()
    return config


def _named(accounts: Sequence[ConfiguredAccount]) -> list[str]:
    return [each.account.name for each in accounts]


def _read_server(table: Table, environ: Mapping[str, str]) -> Server:
    default = Server()
    wait_s = number(0, 7 * DAY_S, "a number of seconds such as 600")
    host, port = table.take("listen", listen, (default.host, default.port))
    server = Server(
        host=host,
        port=port,
        admin_token=table.take("admin_token", secret(environ), None),
        allowed_hosts=table.take("allowed_hosts", host_names, ()),
        max_body_bytes=table.take("max_body_bytes", whole(1024, MOST_BODY_BYTES), default.max_body_bytes),
        max_wait_s=table.take("max_wait_s", wait_s, default.max_wait_s),
        while_waiting=table.take("while_waiting", choice(WHILE_WAITING), default.while_waiting),
        ping_every_s=table.take("ping_every_s", number(0.01, 240, "seconds such as 15"), default.ping_every_s),
        refuse_after_s=table.take("refuse_after_s", number(0, 60, "seconds such as 1"), default.refuse_after_s),
        drain_s=table.take("drain_s", number(0, DAY_S, "a number of seconds such as 30"), default.drain_s),
    )
    table.close()
    return server


def _read_store(table: Table, folder: Path, environ: Mapping[str, str]) -> Store:
    path = table.take("url", sqlite(folder, environ), None)
    store = Store(path or default_store_path(environ), table.take("synchronous", choice(_SYNCHRONOUS), "normal"))
    table.close()
    return store


def _read_limit_tables(document: Document, accounts: Sequence[ConfiguredAccount]) -> list[ReadRule]:
    rules: list[ReadRule] = []
    for table in document.tables("limit"):
        scope = table.take("scope", scope_among(_named(accounts)), "", required=True)
        rules += _read_rules(table, scope, models=read_models(table))
        if not table.values.keys() - {"scope", "models"}:
            table.problem(None, "limits nothing; expected a limit such as requests_per_minute, usd_per_day or slots")
    return rules


def _read_key(table: Table, rules: list[ReadRule]) -> ConfiguredKey:
    """Read a key's entry; its limits join the rules."""
    key = ConfiguredKey(
        name=table.take("name", name, "", required=True),
        team=table.take("team", name, None),
        tags=table.take("tags", _tags, ()),
        weight=table.take("weight", weight, 1.0),
        priority=table.take("priority", whole(-MOST_PRIORITY, MOST_PRIORITY), 0),
        interactive=table.take("interactive", boolean, default=False),
        models=table.take("models", model_globs, ()),
        endpoints=table.take("endpoints", endpoint_names, ()),
        while_waiting=table.take("while_waiting", choice(WHILE_WAITING), None),
        coalesce=table.take("coalesce", boolean, default=False),
        batch_embeddings=table.take("batch_embeddings", boolean, default=False),
    )
    rules += _read_rules(table, f"key:{key.name}", models=None)
    return key


def _with_weights(scheduling: Scheduling, keys: Sequence[ConfiguredKey]) -> Scheduling:
    """Give the keys' own weights where the scheduler's table says none."""
    own = {f"key:{key.name}": key.weight for key in keys if key.weight != 1}
    return replace(scheduling, weights={**own, **scheduling.weights}) if own else scheduling


def _read_rules(table: Table, scope: str, *, models: str | None) -> list[ReadRule]:
    rules = read_limits(table, scope, models=models)
    close_limits(table)
    # A scope that cannot be used stands as "": such rules were checked, but nothing can be said of their agreement.
    return rules if scope not in {"", "key:"} else []


_PRICE_WORDS = ("input", "output", "cache_read", "cache_write_5m", "cache_write_1h")
_REACH_WORDS = ("context_window", "max_output_tokens", "server_tool_turns")
_MOST_WINDOW = 1_000_000_000


def _read_price(table: Table) -> tuple[PriceOverride | None, WindowOverride | None]:
    """Read what models cost and how far they reach; one of the two may be left to what is known."""
    window = WindowOverride(
        model=table.take("model", model_glob, "", required=True),
        context_window=table.take("context_window", whole(1, _MOST_WINDOW), None),
        max_output_tokens=table.take("max_output_tokens", whole(1, _MOST_WINDOW), None),
        server_tool_turns=table.take("server_tool_turns", whole(1, 1_000), None),
    )
    reaches = any(table.has(word) for word in _REACH_WORDS)  # also where what it says cannot be used
    price = _read_tariff(table, window.model, required=not reaches)
    table.close()
    return price, window if reaches else None


def _read_tariff(table: Table, model: str, *, required: bool) -> PriceOverride | None:
    usd_per_mtok = decimal(0, 1_000_000, "a number of dollars per million tokens such as 3 or 0.25")
    zero = Decimal(0)
    priced = required or any(table.has(word) for word in _PRICE_WORDS)
    override = PriceOverride(
        model=model,
        input_usd_per_mtok=table.take("input", usd_per_mtok, zero, required=priced),
        output_usd_per_mtok=table.take("output", usd_per_mtok, zero, required=priced),
        cache_read_usd_per_mtok=table.take("cache_read", usd_per_mtok, None),
        cache_write_5m_usd_per_mtok=table.take("cache_write_5m", usd_per_mtok, None),
        cache_write_1h_usd_per_mtok=table.take("cache_write_1h", usd_per_mtok, None),
    )
    return override if priced else None


def _read_retries(table: Table) -> RetryRule:
    default = RetryRule()
    delay_s = number(0.001, 3600, "a number of seconds such as 0.5")
    rule = RetryRule(
        attempts=table.take("attempts", whole(1, MOST_ATTEMPTS), default.attempts),
        first_delay_s=table.take("first_delay_s", delay_s, default.first_delay_s),
        most_delay_s=table.take("most_delay_s", delay_s, default.most_delay_s),
    )
    if rule.most_delay_s < rule.first_delay_s:
        table.problem("most_delay_s", f"expected at least first_delay_s, which is {rule.first_delay_s:g}")
    table.close()
    return rule


def _read_timeouts(table: Table) -> Timeouts:
    default = Timeouts()
    timeouts = Timeouts(
        connect_s=table.take("connect_s", timeout_s, default.connect_s),
        first_byte_s=table.take("first_byte_s", timeout_s, default.first_byte_s),
        idle_s=table.take("idle_s", timeout_s, default.idle_s),
        dns_s=table.take("dns_s", timeout_s, default.dns_s),
        tls_s=table.take("tls_s", timeout_s, default.tls_s),
    )
    table.close()
    return timeouts


def endpoint_names(value: object) -> tuple[str, ...]:
    """Read the names of endpoints."""
    known = f"expected a list of endpoints, of {', '.join(ENDPOINT_NAMES)}"
    if not isinstance(value, list) or not value:
        raise Unfit(known)
    for index, entry in enumerate(value):
        if entry not in ENDPOINT_NAMES:
            raise Unfit(known, inside=(index,))
    return tuple(value)


def _tags(value: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, dict):
        raise Unfit('expected tags such as { team = "search" }')
    tags: list[tuple[str, str]] = []
    for word, entry in value.items():
        try:
            tags.append((name(word), name(entry)))
        except Unfit as unfit:
            raise Unfit(str(unfit), inside=(word,)) from None
    return tuple(sorted(tags))


def _note_repeated(document: Document, array: str, word: str) -> None:
    """Note every table whose name an earlier one has."""
    lines: dict[str, int] = {}
    for table in document.tables(array):
        value = table.values.get(word)
        if not isinstance(value, str):
            continue
        if value in lines:
            table.problem(word, f"line {lines[value]} has the same")
        lines.setdefault(value, table.line(word))
