"""Logs: where what an agent wrote can be read, and how a path is shown.

One rule: a path is only named when there is something in the file. It knows how the command's agent names its files;
agents that are no commands write none.
"""

from pathlib import Path

from headgate.cli.report.figures import AgentFigures

__all__ = ["log_of", "shown_path"]


def log_of(run_folder: Path, agent: AgentFigures) -> Path | None:
    """Give the log of an agent that failed: its standard error, its output where that is empty, None for neither."""
    if agent.state != "failed" or agent.folder is None:
        return None
    for kind in ("err", "out"):
        log = run_folder / "agents" / agent.folder / f"attempt-{agent.attempts}.{kind}"
        try:
            if log.stat().st_size:
                return log
        except OSError:  # of a run whose folder was tidied away, or is not ours to read: there is no log to name
            continue
    return None


def shown_path(path: Path) -> str:
    """Write a path as one would type it: from the working folder, where it lies inside."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
