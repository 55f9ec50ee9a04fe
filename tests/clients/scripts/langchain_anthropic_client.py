import os

from langchain_anthropic import ChatAnthropic
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool


@tool
def look_up(city: str) -> str:
    """Look up the weather of a city."""
    return f"rain in {city}"


model = ChatAnthropic(
    model="claude-sonnet-4-5", base_url=os.environ["GATEWAY"], api_key=os.environ["HEADGATE_KEY"], max_tokens=60
)
said = [HumanMessage("What is the weather?")]
asked = model.bind_tools([look_up]).invoke(said)
assert asked.tool_calls, asked
said += [asked, look_up.invoke(asked.tool_calls[0])]
assert model.bind_tools([look_up]).invoke(said).content
assert "".join(str(chunk.content) for chunk in model.stream([HumanMessage("Tell me")]))
