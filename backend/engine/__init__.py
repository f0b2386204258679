"""One step: the loop, the scheduler, admission, and feedback to the policy."""
