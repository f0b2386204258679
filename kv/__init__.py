"""The bidirectional paged KV cache's bookkeeping: pure code, no torch, no clock, no I/O."""
