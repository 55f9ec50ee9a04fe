"""The clouds' own SDKs, unmodified, through the simulated provider's doors; and how calls count there."""

import json

import anthropic
import openai
import pytest
from anthropic.lib.bedrock import AnthropicBedrockMantle
from anthropic.lib.foundry import AnthropicFoundry

from headgate.testing.provider import ModelLimits
from headgate.testing.provider.doors import door_of

KEY = "sk-test-key-0001"
QUESTION = [{"role": "user", "content": "How high is the water?"}]


def cloud(name, url):
    match name:
        case "bedrock":
            return AnthropicBedrockMantle(
                base_url=f"{url}/bedrock/anthropic", api_key=KEY, aws_region="us-east-1", max_retries=0
            )
        case "foundry":
            return AnthropicFoundry(base_url=f"{url}/foundry/anthropic", api_key=KEY, max_retries=0)
        case "azure":
            return openai.AzureOpenAI(azure_endpoint=url, api_key=KEY, api_version="2024-10-21", max_retries=0)
        case "azure undated":
            return openai.OpenAI(base_url=f"{url}/openai/v1", api_key=KEY, max_retries=0)
        case _:
            return openai.OpenAI(base_url=f"{url}/v1beta/openai", api_key=KEY, max_retries=0)


@pytest.mark.parametrize("name", ["bedrock", "foundry", "azure", "azure undated", "gemini"])
def test_a_cloud_s_own_sdk_is_answered(serve, name):
    served = serve()
    with cloud(name, served.url) as sdk:
        if isinstance(sdk, openai.OpenAI):
            answer = sdk.chat.completions.create(model="m", max_tokens=10, messages=QUESTION)
            assert len(answer.choices[0].message.content) == 40
        else:
            assert len(sdk.messages.create(model="m", max_tokens=10, messages=QUESTION).content[0].text) == 40


def test_a_dated_path_needs_its_version():
    assert door_of("/openai/deployments/d/chat/completions", b"api-version=2024-10-21").path == "/v1/chat/completions"
    assert door_of("/openai/responses/r", b"a=b&api-version=1").path == "/v1/responses/r"
    unversioned = "/openai/deployments/d/chat/completions"
    assert door_of(unversioned, b"").path == unversioned


@pytest.mark.parametrize(
    ("path", "taken"),
    [
        ("/v1/chat/completions", 20),  # max(max_tokens, prompt), whatever was written
        ("/v1beta/openai/chat/completions", 6),  # the prompt alone
        ("/bedrock/anthropic/v1/messages", 6 + 5 * 3),  # the prompt and five times the output
    ],
)
def test_what_a_call_takes_of_the_limit_on_tokens(serve, path, taken):
    served = serve(limits=(ModelLimits(tokens_per_minute=1_000),))
    body = {"model": "m", "max_tokens": 20, "messages": QUESTION}
    headers = {"x-api-key": KEY, "x-provider-output-tokens": "3", "content-type": "application/json"}
    with anthropic.DefaultHttpxClient() as http:
        answer = http.post(f"{served.url}{path}", content=json.dumps(body), headers=headers)
    assert answer.status_code == 200
    [tokens] = [bucket for bucket in served.provider.usage()["buckets"] if bucket["dimension"] == "tokens"]
    assert tokens["charged_total"] == taken


def test_bedrock_reserves_what_an_answer_may_be(serve):
    served = serve(limits=(ModelLimits(tokens_per_minute=100),))
    with cloud("bedrock", served.url) as sdk, pytest.raises(anthropic.RateLimitError):
        sdk.messages.create(model="m", max_tokens=200, messages=QUESTION)
