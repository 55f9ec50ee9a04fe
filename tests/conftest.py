"""What every test needs: one set of Hypothesis settings on a developer's machine and one in CI.

The rule: no deadline anywhere, because shared machines are slow at random, and no chance in CI.
It holds no fixtures: what a few tests share stands beside them.
"""

import os

from hypothesis import settings

settings.register_profile("dev", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev"))
