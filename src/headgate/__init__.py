"""Headgate: who may call an LLM provider now, who waits, for how long, and at what cost."""
