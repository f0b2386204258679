"""What `bros-serve` is made of: a run directory with its reaper, a Triton installation, two processes, a supervisor."""
