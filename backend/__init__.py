"""BROS for Triton: one engine that serves real-time and best-effort requests together."""
