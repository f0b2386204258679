"""The torch engine: real models on CPU or CUDA. `load` makes the executor; nothing here imports torch before that."""
