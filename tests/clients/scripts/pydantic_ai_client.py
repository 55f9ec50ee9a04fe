import os

from pydantic_ai import Agent
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

gateway, key = os.environ["GATEWAY"], os.environ["HEADGATE_KEY"]
for model in (
    AnthropicModel("claude-sonnet-4-5", provider=AnthropicProvider(base_url=gateway, api_key=key)),
    OpenAIChatModel("gpt-5", provider=OpenAIProvider(base_url=f"{gateway}/v1", api_key=key)),
):
    agent = Agent(model)
    called = []

    @agent.tool_plain
    def look_up(city: str) -> str:
        """Look up the weather of a city."""
        called.append(city)  # noqa: B023 - read before the next one
        return f"rain in {city}"

    assert agent.run_sync("What is the weather?").output
    assert called
