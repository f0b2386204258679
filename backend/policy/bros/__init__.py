"""The BROS policy: real-time by deadline, best-effort work in the remaining time."""
