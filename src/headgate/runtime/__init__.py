"""The asyncio shell around the core: it waits, sends and keeps, and decides nothing.

No third party, no SQL, no HTTP: what it needs of the world comes in through the ports.
"""
