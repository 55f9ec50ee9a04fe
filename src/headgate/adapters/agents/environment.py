"""The environment of an agent's process: all of the runner's that is harmless, and the way to the gateway.

One rule: no credential of a provider gets through, under whatever name, and no setting that leads around the gateway.
It reads no environment itself: the runner's is handed in.
"""

from collections.abc import Collection, Mapping

from headgate.core.jobs import Job
from headgate.ports import Desk

__all__ = ["MOST_TASK_BYTES", "agent_environment"]

# Of these families only the names of models pass: keys, tokens, base URLs, organisations and extra headers all either
# are credentials or send the client somewhere else than to the gateway.
_PROVIDER_PREFIXES = ("ANTHROPIC_", "OPENAI_", "AZURE_OPENAI_")
_HARMLESS = "MODEL"
_NAMES = frozenset({
    "CLAUDE_CODE_OAUTH_TOKEN", "CLAUDE_CODE_USE_BEDROCK", "CLAUDE_CODE_USE_VERTEX", "CLAUDE_CODE_USE_FOUNDRY",
    "AWS_BEARER_TOKEN_BEDROCK", "GEMINI_API_KEY", "GOOGLE_API_KEY", "MISTRAL_API_KEY", "COHERE_API_KEY", "CO_API_KEY",
    "GROQ_API_KEY", "XAI_API_KEY", "DEEPSEEK_API_KEY", "TOGETHER_API_KEY", "FIREWORKS_API_KEY", "PERPLEXITY_API_KEY",
    "OPENROUTER_API_KEY",
})  # fmt: skip
# How Anthropic's, OpenAI's and OpenRouter's keys begin: they are recognised where they hide under another name.
_SECRET_BEGINNINGS = ("sk-ant-", "sk-proj-", "sk-svcacct-", "sk-or-")

MOST_TASK_BYTES = 96 * 1024
"""Beyond this a task is only in its file: Linux takes 128 KiB in one string of the environment (MAX_ARG_STRLEN)."""


def agent_environment(
    parent: Mapping[str, str], job: Job, desk: Desk, secrets: Collection[str] = frozenset()
) -> dict[str, str]:
    """Give the environment for one attempt.

    `secrets` are the names of the variables that hold the accounts' keys; their values are kept out under any name.
    """
    hidden_values = {parent[name] for name in secrets if parent.get(name)}
    environment = {
        name: value
        for name, value in parent.items()
        if name not in secrets and value not in hidden_values and _passes(name, value)
    }
    environment |= desk.environment
    environment |= {
        "ANTHROPIC_BASE_URL": desk.anthropic_base_url,
        "ANTHROPIC_API_KEY": desk.key,
        "OPENAI_BASE_URL": desk.openai_base_url,
        "OPENAI_API_KEY": desk.key,
        "HEADGATE_RUN": job.run,
        "HEADGATE_AGENT": job.name,
        "HEADGATE_ATTEMPT": str(job.attempt),
    }
    if len(job.task.encode()) <= MOST_TASK_BYTES:
        environment["HEADGATE_TASK"] = job.task
    return environment


def _passes(name: str, value: str) -> bool:
    if name in _NAMES or name.startswith("HEADGATE_") or value.startswith(_SECRET_BEGINNINGS):
        return False
    return _HARMLESS in name or not name.startswith(_PROVIDER_PREFIXES)
