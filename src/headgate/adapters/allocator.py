"""The allocator: glibc's malloc is told to keep what a large body was given, for the next one.

One rule: nothing else changes; where there is no glibc nothing is done. By its defaults glibc gives the end of its heap
back to the kernel at every body of more than 128 KiB, and has it faulted in again, page by page, at the next: to join
200 KB and cut them costs 200 us instead of 16 (November and December 2026).
"""

import ctypes
from contextlib import suppress

__all__ = ["keep_freed_memory"]

# mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 8 * 1024 * 1024
_MAPPED_ALONE_BYTES = 2 * 1024 * 1024


def keep_freed_memory() -> bool:
    """Let up to 8 MiB at the heap's end be kept; False where the allocator is another's."""
    with suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        return bool(mallopt(_M_MMAP_THRESHOLD, _MAPPED_ALONE_BYTES) and mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES))
    return False
