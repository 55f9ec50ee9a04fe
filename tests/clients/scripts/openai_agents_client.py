import asyncio
import os

from agents import Agent, OpenAIResponsesModel, Runner, function_tool, set_tracing_disabled
from openai import AsyncOpenAI

set_tracing_disabled(disabled=True)
called = []


@function_tool
def look_up(city: str) -> str:
    """Look up the weather of a city."""
    called.append(city)
    return f"rain in {city}"


async def main() -> None:
    client = AsyncOpenAI(base_url=os.environ["GATEWAY"] + "/v1", api_key=os.environ["HEADGATE_KEY"])
    agent = Agent(name="a", model=OpenAIResponsesModel("gpt-5", client), tools=[look_up])
    assert (await Runner.run(agent, "What is the weather?")).final_output
    assert called
    streamed = Runner.run_streamed(agent, "And tomorrow?")
    assert [event async for event in streamed.stream_events()]


asyncio.run(main())
