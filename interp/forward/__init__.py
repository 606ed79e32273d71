"""The ways of running a model: capture, generate, and resuming from a block."""
