"""The simulator: scenarios, step models, and the upper bound on best-effort throughput."""
