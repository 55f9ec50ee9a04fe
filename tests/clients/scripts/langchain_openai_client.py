import os

from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings


@tool
def look_up(city: str) -> str:
    """Look up the weather of a city."""
    return f"rain in {city}"


where = {"base_url": os.environ["GATEWAY"] + "/v1", "api_key": os.environ["HEADGATE_KEY"]}
for responses in (False, True):
    model = ChatOpenAI(model="gpt-5", use_responses_api=responses, **where)
    said = [HumanMessage("What is the weather?")]
    asked = model.bind_tools([look_up]).invoke(said)
    assert asked.tool_calls, asked
    said += [asked, look_up.invoke(asked.tool_calls[0])]
    assert model.bind_tools([look_up]).invoke(said).content
    assert "".join(str(chunk.content) for chunk in model.stream([HumanMessage("Tell me")]))
vectors = OpenAIEmbeddings(model="text-embedding-3-small", check_embedding_ctx_length=False, **where)
assert len(vectors.embed_documents(["one", "two"])) == 2
