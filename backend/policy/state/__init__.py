"""State that a policy reads: request table, waiting queues, latency model, traffic."""
