"""Values and protocols that every room shares: request, plan, clock, errors, executor."""
