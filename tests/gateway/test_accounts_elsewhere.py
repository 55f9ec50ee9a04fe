"""Accounts at other vendors behind one gateway: the official SDKs ask for a model, and know nothing of where it is."""

import anthropic
import openai
import pytest
from conftest import PROVIDER_KEY

ACCOUNTS = """
[[account]]
name = "azure"
provider = "azure"
base_url = "{at}"
api_version = "2024-10-21"
api_key = "env:PROVIDER_KEY"
models = ["az-*"]
names = {{ "az-large" = "my-deployment" }}
[[account]]
name = "bedrock"
provider = "bedrock"
base_url = "{at}/bedrock/anthropic"
api_key = "env:PROVIDER_KEY"
names = {{ "sonnet" = "anthropic.claude-sonnet-4-5" }}
[[account]]
name = "gemini"
provider = "gemini"
base_url = "{at}/v1beta/openai"
api_key = "env:PROVIDER_KEY"
models = ["gemini-*"]
[[account]]
name = "openrouter"
provider = "openrouter"
base_url = "{at}/api/v1"
api_key = "env:PROVIDER_KEY"
models = ["vendor/*"]
[[account]]
name = "own"
provider = "vllm"
base_url = "{at}/v1"
models = ["qwen*"]
"""
QUESTION = [{"role": "user", "content": "How are you?"}]


@pytest.mark.parametrize(
    ("model", "account", "served"),
    [
        ("az-large", "azure", "my-deployment"),
        ("az-other", "azure", "az-other"),
        ("gemini-3-flash", "gemini", "gemini-3-flash"),
        ("vendor/model", "openrouter", "vendor/model"),
        ("qwen3", "own", "qwen3"),
    ],
)
def test_chat_goes_to_the_account_that_has_the_model(with_stack, model, account, served):
    async def test(stack):
        async with openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="any", max_retries=0) as client:
            raw = await client.chat.completions.with_raw_response.create(model=model, max_tokens=16, messages=QUESTION)
            assert raw.headers["x-headgate-account"] == account
            assert raw.parse().choices[0].message.content
            chunks = [
                chunk
                async for chunk in await client.chat.completions.create(
                    model=model, max_tokens=16, messages=QUESTION, stream=True
                )
            ]
            assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        truth = stack.provider.usage()
        assert set(truth["models"]) == {served}
        total = await stack.total()
        assert total["requests"] == truth["total"]["requests_served"] == 2
        assert total["output_tokens"] == truth["total"]["output_tokens"] > 0
        assert total["estimated"] == 0

    with_stack(test, limits=ACCOUNTS)


def test_claude_at_bedrock_answers_under_the_name_that_calls_use(with_stack):
    async def test(stack):
        async with anthropic.AsyncAnthropic(base_url=stack.url, api_key="any", max_retries=0) as client:
            asked = {"model": "sonnet", "max_tokens": 16, "messages": QUESTION}
            assert (await client.messages.create(**asked)).content[0].text
            async with client.messages.stream(**asked) as stream:
                assert [piece async for piece in stream.text_stream]
            assert (await client.messages.count_tokens(model="sonnet", messages=QUESTION)).input_tokens > 0
        truth = stack.provider.usage()
        assert set(truth["models"]) == {"anthropic.claude-sonnet-4-5"}
        assert (await stack.total())["output_tokens"] == truth["total"]["output_tokens"] > 0

    with_stack(test, limits=ACCOUNTS)


def test_an_endpoint_that_a_vendor_has_not_is_a_404_in_the_client_s_shape(with_stack):
    async def test(stack):
        async with openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="any", max_retries=0) as client:
            with pytest.raises(openai.NotFoundError, match="not served by gemini"):
                await client.responses.create(model="gemini-3-flash", input="Hello")
        assert stack.provider.usage()["total"]["requests_received"] == 0
        assert (await stack.total())["cost_micro_usd"] == 0

    with_stack(test, limits=ACCOUNTS)


def test_accounts_are_listed_with_their_vendor_and_without_their_key(with_stack):
    async def test(stack):
        listed = await stack.get("/api/v1/accounts")
        assert {"azure", "bedrock", "gemini", "openrouter", "vllm"} <= {each["provider"] for each in listed["accounts"]}
        assert PROVIDER_KEY not in str(listed)

    with_stack(test, limits=ACCOUNTS)
