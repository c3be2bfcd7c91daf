"""The only sampling loop, and what it needs around it."""
