"""Scheduling policies: pure decisions about one step. The published algorithm lives here; so do the baselines."""
