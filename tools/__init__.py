"""Fits latency models and step models to published or recorded step times."""
