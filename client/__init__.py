"""Client library and command line for a Triton server that serves the `bros` models."""
