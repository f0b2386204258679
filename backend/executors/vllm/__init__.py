"""vLLM behind the engine's face: its step loop in our process, our policy inside its scheduler.

`loading.load_engine` makes the engine; `settings` is light enough for the configuration to import.
"""
