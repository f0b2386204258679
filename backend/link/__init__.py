"""The link of a stub or a worker to the engine process."""
