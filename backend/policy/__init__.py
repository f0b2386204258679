"""Scheduling policies, pure decisions about one step: the registry, and a room for each part."""
