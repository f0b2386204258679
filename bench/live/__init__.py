"""Benchmarks of a real server: start it, send it load."""
