"""What a client is told when no account can be reached."""

import json

CALL = b'{"model":"qwen-3","max_tokens":9,"messages":[{"role":"user","content":"hi"}]}'


def account(name: str) -> str:
    """Give an account at a port where nobody listens."""
    return f"""
        [[account]]
        name = "{name}"
        provider = "anthropic"
        base_url = "http://127.0.0.1:1"
        api_key = "env:PROVIDER_KEY"
        models = ["qwen-*"]
    """


def test_with_both_accounts_down_both_are_named(with_stack):
    """The 502 had one address, and nobody could see that the other account was tried too."""

    async def test(stack):
        status, _, answer = await stack.send("POST", "/v1/messages", CALL)
        message = json.loads(answer)["error"]["message"]
        assert status == 502, message
        assert message.startswith("127.0.0.1:1: ")
        assert message.endswith("; tried 4 times, with accounts one and two")

    with_stack(test, limits=account("one") + account("two"))


def test_with_the_only_account_down_it_is_named(with_stack):
    async def test(stack):
        _, _, answer = await stack.send("POST", "/v1/messages", CALL)
        assert json.loads(answer)["error"]["message"].endswith("; tried 4 times, with account one")

    with_stack(test, limits=account("one"))
