"""`python -m fuzz [TARGET ...] --inputs N`: spoiled seeds, or what atheris finds where it is installed (`--atheris`).

One rule: a finding is kept as a file and ends with status 1; it becomes a test.
"""

import argparse
import faulthandler
import sys
import time
from pathlib import Path


def main() -> int:
    """Fuzz what is asked for; give the status."""
    asked = argparse.ArgumentParser(prog="python -m fuzz")
    asked.add_argument("targets", nargs="*", help="all without any")
    asked.add_argument("--inputs", type=int, default=100_000, help="for each target")
    asked.add_argument("--first", type=int, default=0, help="the number of the first input")
    asked.add_argument("--atheris", action="store_true", help="by coverage; one target")
    asked.add_argument("--found", type=Path, default=Path("fuzz/found"), help="where findings are kept")
    said = asked.parse_args()
    if said.atheris:
        return _by_coverage(said.targets, said.inputs, said.found)
    from fuzz.targets import TARGETS  # noqa: PLC0415 - atheris has to import it itself, and watches that

    for name in said.targets or TARGETS:
        if not _spoil(name, said.first, said.inputs, said.found):
            return 1
    return 0


def _spoil(name: str, first: int, inputs: int, folder: Path) -> bool:
    from fuzz.seeds import spoiled  # noqa: PLC0415 - as above
    from fuzz.targets import TARGETS  # noqa: PLC0415 - as above

    target, began = TARGETS[name], time.monotonic()
    for number in range(first, first + inputs):
        data = spoiled(name, number)
        # An input that hangs ends the process with a trace of where.
        faulthandler.dump_traceback_later(60, exit=True)
        try:
            target(data)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what was looked for
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{name}-{number}").write_bytes(data)
            print(f"{name} {number}: {type(error).__name__}: {error}; kept in {folder}/{name}-{number}", flush=True)
            return False
    faulthandler.cancel_dump_traceback_later()
    print(f"{name}: {inputs:,} inputs from {first:,}, nothing found, {time.monotonic() - began:.0f} s", flush=True)
    return True


def _by_coverage(targets: list[str], inputs: int, folder: Path) -> int:
    try:
        import atheris  # noqa: PLC0415 - there is none for every platform
    except ImportError:
        print("SKIPPED: atheris is not installed (pip install -r fuzz/requirements.txt)", file=sys.stderr)
        return 0
    with atheris.instrument_imports(include=["headgate"]):
        from fuzz.targets import TARGETS  # noqa: PLC0415 - it is watched from here on
    from fuzz.seeds import SEEDS  # noqa: PLC0415 - as above

    (name,) = targets
    corpus = folder / "corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    for index, seed in enumerate(SEEDS[name]):
        (corpus / f"seed-{index}").write_bytes(seed)
    options = [f"-runs={inputs}", "-timeout=60", "-max_len=8192", f"-artifact_prefix={folder}/{name}-", str(corpus)]
    atheris.Setup([sys.argv[0], *options], TARGETS[name])
    atheris.Fuzz()
    return 0


sys.exit(main())
