"""TensorRT-LLM behind the engine's face: our policy inside its step (inner mode) or in front of it (outer mode).

`loading.load_engine` makes the engine; `settings` is light enough for the configuration to import.
"""
