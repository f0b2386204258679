"""Workloads, scores, statistics, provenance: shared by simulated and measured benchmarks."""
