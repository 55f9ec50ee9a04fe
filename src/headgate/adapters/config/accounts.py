"""Accounts: `[[account]]`, or without one what the environment says.

One rule: what a vendor's accounts need and may have is the vendor's to say (`adapters.providers.vendors`); here it is
only read, and what does not go together is told.
"""

from collections.abc import Mapping
from typing import Literal

from headgate.adapters.config.settings import ConfiguredAccount, CredentialWord, Secret
from headgate.adapters.config.tables import Table, Unfit, boolean, choice, number
from headgate.adapters.config.values import (
    base_url,
    environment_secret,
    model_glob,
    model_globs,
    name,
    secret,
    timeout_s,
)
from headgate.adapters.providers.vendors.catalogue import VENDORS, usual_models
from headgate.adapters.providers.vendors.vendor import Vendor
from headgate.core.accounts import Account

__all__ = ["accounts_of_environment", "read_account"]

# The base URLs of the same clients (ANTHROPIC_BASE_URL, OPENAI_BASE_URL) are not read: in an agent's shell they name
# Headgate itself, which would then call itself.
_VARIABLES = {"anthropic": "ANTHROPIC_API_KEY", "openai": "OPENAI_API_KEY"}

_CREDENTIALS: Mapping[str, CredentialWord] = {"bearer": "bearer", "x-api-key": "x-api-key", "api-key": "api-key"}
_ENCODINGS: Mapping[str, Literal["gzip"]] = {"gzip": "gzip"}
_MOST_NAMES = 1_000
_MOST_VERSION_CHARS = 40


def accounts_of_environment(environ: Mapping[str, str]) -> tuple[ConfiguredAccount, ...]:
    """Give an account for each vendor whose usual variable is set."""
    return tuple(
        ConfiguredAccount(
            Account(vendor.name, vendor.dialect, vendor.models, vendor=vendor.name, counting=vendor.counting),
            vendor.base_url or vendor.address,
            environment_secret(environ, variable),
        )
        for vendor, variable in ((VENDORS[word], variable) for word, variable in _VARIABLES.items())
        if environ.get(variable)
    )


def read_account(table: Table, environ: Mapping[str, str]) -> ConfiguredAccount:
    """Read an account's entry."""
    vendor: Vendor = table.take("provider", choice(VENDORS), VENDORS["anthropic"], required=True)
    needs_address = vendor.base_url is None
    address = table.take("base_url", base_url, vendor.base_url or vendor.address, required=needs_address)
    names: tuple[tuple[str, str], ...] = table.take("names", _names, ())
    usual = usual_models(vendor, address)
    # What it calls by names of its own it serves under the names that calls use; whoever serves anything, only that.
    called = tuple(word for word, _own in names if word not in usual)
    called = (usual if usual != ("*",) or not called else ()) + called
    version = table.take("api_version", _version, None)
    if version is not None and not vendor.takes_version:
        table.problem("api_version", f'{vendor.name} has none; it is for provider = "azure"')
    account = ConfiguredAccount(
        account=Account(
            name=table.take("name", name, "", required=True),
            dialect=vendor.dialect,
            models=table.take("models", model_globs, called),
            overage=table.take("overage", boolean, default=False),
            soft_ceiling=table.take("soft_ceiling", number(0.01, 1, "a part of a plan window such as 0.9"), 1.0),
            vendor=vendor.name,
            counting=vendor.counting,
        ),
        base_url=address,
        api_key=table.take("api_key", secret(environ), _no_key(vendor), required=vendor.needs_key),
        reconcile=table.take("reconcile", boolean, default=False),
        credential=table.take("credential", choice(_CREDENTIALS), None),
        api_version=version,
        names=names,
        first_byte_s=table.take("first_byte_s", timeout_s, None),
        idle_s=table.take("idle_s", timeout_s, None),
        compress_requests=table.take("compress_requests", choice(_ENCODINGS), None),
    )
    table.close()
    return account


def _no_key(vendor: Vendor) -> Secret | None:
    return Secret("") if vendor.needs_key else None


def _names(value: object) -> tuple[tuple[str, str], ...]:
    expected = 'expected names of models such as { "claude-sonnet-4-5" = "anthropic.claude-sonnet-4-5" }'
    if not isinstance(value, dict) or len(value) > _MOST_NAMES:
        raise Unfit(expected)
    names: list[tuple[str, str]] = []
    for word, own in value.items():
        try:
            names.append((_plain(word), _plain(own)))
        except Unfit as unfit:
            raise Unfit(str(unfit), inside=(word,)) from None
    return tuple(names)


def _plain(value: object) -> str:
    read = model_glob(value)
    if any(mark in read for mark in "*?["):
        raise Unfit("expected the whole name of a model, without * and ?")
    return read


def _version(value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= _MOST_VERSION_CHARS or not value.isascii():
        raise Unfit('expected a version such as "2024-10-21"')
    if not value.replace("-", "").replace(".", "").isalnum():
        raise Unfit('expected a version such as "2024-10-21"')
    return value
