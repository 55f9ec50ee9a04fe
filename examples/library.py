"""Headgate as a library, without any server: ask before you call, say what you used.

Run it beside a headgate.toml (examples/headgate.toml is one), or with ANTHROPIC_API_KEY in the environment.
"""

import asyncio

from headgate import Call, Scopes, Usage, open_manager


async def call_the_model(prompt: str) -> tuple[str, Usage]:
    """Stand for your own client: give the answer, and the usage that the provider reported."""
    return f"an answer to {prompt!r}", Usage(input_tokens=len(prompt) // 4, output_tokens=120)


async def main() -> None:
    prompt = "Why do headgates exist?"
    async with open_manager() as manager:
        call = Call("claude-haiku-4-5", text_bytes=len(prompt), max_output_tokens=1024, scopes=Scopes(run="example"))
        async with manager.admit(call) as grant:  # waits its turn; raises LimitError when it cannot go in time
            answer, usage = await call_the_model(prompt)
            grant.settle(usage)
        print(f"waited {grant.wait_s:.3f} s on account {grant.account}: {answer}")
        for limit in await manager.limits():
            print(f"{limit.scope} {limit.dimension}: {limit.used} used, {limit.free} free")


if __name__ == "__main__":
    asyncio.run(main())
