"""Benchmarks: one module per command, the simulator, the load generator, the report."""
