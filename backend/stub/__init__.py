"""The three Triton models: validation, the link to the engine, responses, metrics."""
