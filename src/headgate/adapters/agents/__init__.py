"""Agents: how a job is worked on, by a command, by a Python function, or by replaying a recorded session.

One rule: an agent knows the gateway's address and a key of its own, never a provider's key.
Queues, leases and retries of whole jobs are the fleet's.
"""
