"""Forwards: capturing activations, generating text, and resuming from a block."""
