"""The simulator: Headgate's own admission in virtual time, over workloads, to plan with and to compare policies."""
