"""The command line: `headgate serve`, `run`, `resume`, `runs`, `keys`, `usage`, `limits`, `provider`.

One rule: a command is a thin shell over what the library can do; what it needs is imported when it runs, so that
`headgate --help` is quick. Exit codes: 0 done, 1 failed, 2 usage, 75 limited (try again later).
"""

from headgate.cli.main import main

__all__ = ["main"]
