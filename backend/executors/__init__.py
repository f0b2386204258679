"""Executors run steps: the simulator, the torch engine and TensorRT-LLM, behind `backend.core.executor`."""
