"""TensorRT-LLM behind the engine's interface: our policy inside its step (inner mode) or in front of it (outer mode).

`loading.load_engine` makes the engine. The configuration imports only `settings`.
"""
