"""Workloads, the simulator, the load generator and the reports made from their results."""
