"""Scheduling policies: pure functions from a view of the engine to a plan for its next step."""
