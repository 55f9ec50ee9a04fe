"""The report of a run: what every agent used, cost and waited for, and how far each limit was used.

One rule: all of it is computed from the ledger's rows and the jobs, so that it is right after any crash and resume.
It asks no store: whoever has the rows hands them in.
"""

from headgate.cli.report.figures import (
    AgentFigures,
    LimitFigures,
    LimitShown,
    ProviderCount,
    RunFigures,
    RunReport,
    figures_of,
)
from headgate.cli.report.page import write_page
from headgate.cli.report.table import as_json, print_report

__all__ = [
    "AgentFigures",
    "LimitFigures",
    "LimitShown",
    "ProviderCount",
    "RunFigures",
    "RunReport",
    "as_json",
    "figures_of",
    "print_report",
    "write_page",
]
