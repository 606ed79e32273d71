"""Training runs: the schema of their logs, and reading and drawing them."""
