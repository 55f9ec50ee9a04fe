"""What glibc is told is taken; its benefit is `python -m benchmarks A`'s to show."""

import platform
import subprocess
import sys

import pytest


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is another's")
def test_memory_of_a_large_body_is_not_faulted_in_again() -> None:
    # In a process of its own, for what is told to malloc stays told. Faults are counted by the kernel, not timed.
    code = """
import resource, sys
from headgate.adapters.allocator import keep_freed_memory
assert sys.argv[1] == "as it is" or keep_freed_memory()
def churn():
    for _ in range(200):
        body = b"".join([b"x" * 150_000, b"y" * 50_000])
        rest = body[10:]
        del body, rest
churn()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
churn()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = {
        told: int(subprocess.run([sys.executable, "-c", code, told], check=True, capture_output=True, text=True).stdout)
        for told in ("as it is", "kept")
    }
    assert faults["kept"] * 10 < faults["as it is"], faults
