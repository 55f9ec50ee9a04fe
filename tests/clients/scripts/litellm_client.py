import os

import litellm

litellm.telemetry = False
gateway, key = os.environ["GATEWAY"], os.environ["HEADGATE_KEY"]
said = [{"role": "user", "content": "Tell me"}]
for model, base in (("anthropic/claude-sonnet-4-5", gateway), ("openai/gpt-5", f"{gateway}/v1")):
    asked = {"model": model, "api_base": base, "api_key": key, "messages": said, "max_tokens": 60}
    whole = litellm.completion(**asked)
    assert whole.choices[0].message.content
    assert whole.usage.completion_tokens
    pieces = litellm.completion(**asked, stream=True)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces)
