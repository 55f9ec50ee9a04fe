"""Every vendor of the catalogue: what its accounts send, where, with which credential, and what may be said of them."""

from collections.abc import Callable
from pathlib import Path

import pytest
from http_peers import answering
from test_account import SECRET, account, answer, request, sent_headers

from headgate.adapters.config import load_config
from headgate.adapters.providers.vendors.catalogue import CREDENTIALS, VENDORS
from headgate.adapters.providers.vendors.vendor import Place
from headgate.core.errors import ConfigError, UnservedError
from headgate.core.usage import CHARGES
from headgate.testing import virtual_time

CHAT = b'{"model":"gpt-5", "messages":[], "n":1}'
TOKEN = "eyJhbGciOi.eyJzdWIi.c2lnbmF0dXJl"
ENVIRON = {"KEY": SECRET, "HOME": "/home/me"}


@pytest.mark.parametrize("name", sorted(VENDORS))
def test_a_vendor_of_the_catalogue_is_whole(name: str) -> None:
    vendor = VENDORS[name]
    assert vendor.name == name
    assert vendor.counting in CHARGES
    header, value = vendor.credential(SECRET)
    assert header == header.lower()
    assert SECRET.encode() in value
    assert vendor.target(Place("/base"), "/v1/models?limit=1", "").startswith(("/base/", "/openai/"))
    assert (vendor.base_url or vendor.address).startswith("http")


@pytest.mark.parametrize(
    ("name", "path", "version", "asked", "target"),
    [
        ("azure", "", None, "/v1/chat/completions", "/openai/v1/chat/completions"),
        ("azure", "/openai/v1", None, "/v1/responses?x=1", "/openai/v1/responses?x=1"),
        (
            "azure", "", "2024-10-21", "/v1/chat/completions",
            "/openai/deployments/gpt-5/chat/completions?api-version=2024-10-21",
        ),
        ("azure", "/openai", "2024-10-21", "/v1/responses?x=1", "/openai/responses?x=1&api-version=2024-10-21"),
        (
            "azure", "", "2024-10-21", "/v1/embeddings?api-version=2020-01-01&a=b",
            "/openai/deployments/gpt-5/embeddings?a=b&api-version=2024-10-21",
        ),
        ("gemini", "/v1beta/openai", None, "/v1/chat/completions", "/v1beta/openai/chat/completions"),
        ("openrouter", "/api/v1", None, "/v1/chat/completions", "/api/v1/chat/completions"),
        ("ollama", "/v1", None, "/v1/embeddings", "/v1/embeddings"),
    ],
)  # fmt: skip
def test_where_a_vendor_is_asked(name: str, path: str, version: str | None, asked: str, target: str) -> None:
    async def main() -> None:
        plays = answering(answer(b"{}"))
        if asked.partition("?")[0] in {"/v1/embeddings", "/v1/responses"} and name == "gemini":
            return
        async with account(plays, dialect=name, path=path, api_version=version) as (provider, script):
            async with provider.send(request(asked, body=CHAT)):
                pass
            assert script.requests[0].split(b" ")[1] == target.encode()
            assert script.requests[0].endswith(CHAT)

    virtual_time.run(main())


@pytest.mark.parametrize(
    ("name", "key", "line"),
    [
        ("azure", SECRET, f"api-key: {SECRET}"),
        ("azure", TOKEN, f"authorization: Bearer {TOKEN}"),
        ("foundry", SECRET, f"x-api-key: {SECRET}"),
        ("foundry", TOKEN, f"authorization: Bearer {TOKEN}"),
        ("bedrock", SECRET, f"authorization: Bearer {SECRET}"),
        ("gemini", SECRET, f"authorization: Bearer {SECRET}"),
    ],
)
def test_how_a_vendor_is_shown_its_key(name: str, key: str, line: str) -> None:
    async def main() -> None:
        asked = "/v1/messages" if VENDORS[name].dialect == "anthropic" else "/v1/chat/completions"
        async with account(answering(answer(b"{}")), dialect=name, path="/v1", key=key) as (provider, script):
            async with provider.send(request(asked)):
                pass
            shown = [each for each in sent_headers(script) if key.encode() in each]
            assert shown == [line.encode()]

    virtual_time.run(main())


def test_a_model_goes_by_the_accounts_own_name_and_no_other_byte_changes() -> None:
    async def main() -> None:
        names = {"gpt-5": "my deployment/5"}
        options = {"names": names, "api_version": "2024-10-21"}
        async with account(answering(answer(b"{}")), dialect="azure", **options) as (provider, script):
            async with provider.send(request("/v1/chat/completions", body=CHAT)):
                pass
            assert b"/openai/deployments/my%20deployment%2F5/chat/completions" in script.requests[0]
            assert script.requests[0].endswith(CHAT.replace(b"gpt-5", b"my deployment/5"))

    virtual_time.run(main())


def test_what_a_vendor_does_not_serve_is_not_asked_of_it() -> None:
    async def main() -> None:
        async with account(answering(answer(b"{}")), dialect="gemini") as (provider, script):
            with pytest.raises(UnservedError, match="/v1/responses is not served by gemini, where account main is"):
                provider.send(request("/v1/responses"))
            assert not script.requests

    virtual_time.run(main())


def test_a_server_of_ones_own_is_shown_no_key_where_it_has_none() -> None:
    async def main() -> None:
        async with account(answering(answer(b"{}")), dialect="vllm", key=None) as (provider, script):
            async with provider.send(request("/v1/chat/completions")):
                pass
            assert not [line for line in sent_headers(script) if b"uthoriz" in line or b"api-key" in line.lower()]

    virtual_time.run(main())


@pytest.mark.parametrize("word", sorted(CREDENTIALS))
def test_a_key_goes_in_the_header_that_its_owner_names(word: str) -> None:
    async def main() -> None:
        async with account(answering(answer(b"{}")), credential=CREDENTIALS[word]) as (provider, script):
            async with provider.send(request()):
                pass
            [shown] = [line for line in sent_headers(script) if SECRET.encode() in line]
            assert shown.split(b":")[0] == (b"authorization" if word == "bearer" else word.encode())

    virtual_time.run(main())


@pytest.fixture
def load(tmp_path: Path) -> Callable[[str], object]:
    """Load one account's entry."""

    def loaded(entry: str) -> object:
        path = tmp_path / "headgate.toml"
        path.write_text(f'[[account]]\nname = "main"\n{entry}\n')
        return load_config(path, ENVIRON).accounts[0]

    return loaded


def test_an_account_says_what_its_vendor_needs(load: Callable[[str], object]) -> None:
    account = load(
        'provider = "bedrock"\nbase_url = "https://bedrock-mantle.us-east-1.api.aws/anthropic/"\napi_key = "env:KEY"\n'
        'names = { "claude-sonnet-4-5" = "anthropic.claude-sonnet-4-5" }'
    )
    assert account.account.models == ("anthropic.claude-*", "*.anthropic.claude-*", "claude-sonnet-4-5")  # type: ignore[attr-defined]
    assert account.account.counts == "bedrock"  # type: ignore[attr-defined]
    assert account.base_url == "https://bedrock-mantle.us-east-1.api.aws/anthropic"  # type: ignore[attr-defined]
    azure = 'provider = "azure"\nbase_url = "https://n.openai.azure.com"\napi_key = "env:KEY"\n'
    named = load(azure + 'names = { "gpt-5" = "d" }')
    assert named.account.models == ("gpt-5",)  # type: ignore[attr-defined]
    gemini = load('provider = "gemini"\nbase_url = "https://proxy.example/v1"\napi_key = "env:KEY"')
    assert "gemini-*" in gemini.account.models  # type: ignore[attr-defined]
    assert load('provider = "ollama"').api_key is None  # type: ignore[attr-defined]
    assert load('provider = "azure"\nbase_url = "https://n.openai.azure.com"\napi_key = "env:KEY"').account.models == (
        "*",
    )  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ('provider = "azure"\napi_key = "env:KEY"', "base_url"),
        ('provider = "nobody"\napi_key = "env:KEY"', "nobody"),
        ('provider = "groq"', "api_key"),
        ('provider = "openai"\napi_key = "env:KEY"\napi_version = "2024-10-21"', "openai has none"),
        ('provider = "azure"\nbase_url = "https://a.b"\napi_key = "env:KEY"\napi_version = "a b"', "2024-10-21"),
        ('provider = "openai"\napi_key = "env:KEY"\nnames = { "gpt-*" = "x" }', "without * and ?"),
        ('provider = "openai"\napi_key = "env:KEY"\nnames = ["gpt-5"]', "expected names of models"),
        ('provider = "openai"\napi_key = "env:KEY"\ncredential = "basic"', "bearer"),
    ],
)
def test_what_does_not_go_together_is_told(load: Callable[[str], object], entry: str, told: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load(entry)
    assert told in str(raised.value)
    assert SECRET not in str(raised.value)
