"""The gateway: the providers' own endpoints over HTTP, under Headgate's limits, and the control API.

One rule: bytes pass as they are; the gateway reads what it must know of a call and leaves the rest to the runtime.
"""
