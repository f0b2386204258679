"""What adapters of engines with a step loop of their own share: our policy, and the books it reads, beside their
scheduler.

    mirror   their requests and KV pool, retold as the state that a policy reads
    pilot    policy, mirror and what they learn from each step
    answers  what clients get, in order, with exactly one end each
"""
