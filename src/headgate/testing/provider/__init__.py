"""A provider to test against: real wire formats, real limits, faults on demand, and books that tell the truth.

One rule: it is independent of what it checks, so nothing here comes from `headgate.core`.
It bills nobody and understands nothing of what it is asked.
"""

from headgate.testing.provider.application import SimulatedProvider
from headgate.testing.provider.settings import (
    FAULT_KINDS,
    Faults,
    Latency,
    ModelLimits,
    PlanWindow,
    ProviderSettings,
)

__all__ = [
    "FAULT_KINDS",
    "Faults",
    "Latency",
    "ModelLimits",
    "PlanWindow",
    "ProviderSettings",
    "SimulatedProvider",
]
