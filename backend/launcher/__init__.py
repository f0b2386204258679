"""bros-serve: starts, watches, drains and cleans up Triton and the engine."""
