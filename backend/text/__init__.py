"""Text to tokens and back: tokenizers, chat templates, GGUF and model files."""
