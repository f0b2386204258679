"""The three Triton models: validation, responses, metrics."""
