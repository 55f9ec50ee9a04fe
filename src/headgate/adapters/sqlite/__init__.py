"""SQLite: levels, ledger, jobs and keys in one file, shared by all processes of a machine.

One rule: every change is made in a short transaction of its own or of its tick (`database`), so that what was
acknowledged survives kill -9. Begin at `stores`; nothing here decides anything, the core's functions do.
"""
