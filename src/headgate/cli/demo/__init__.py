"""The example that `make run` shows: a workload of agents under limits far smaller than what they would like to use."""
