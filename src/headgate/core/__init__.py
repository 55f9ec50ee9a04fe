"""The decisions: pure, synchronous, standard library only.

Time comes in as `now_s`, a decision goes out as a value. Nothing here waits, reads a clock or does I/O.
"""
