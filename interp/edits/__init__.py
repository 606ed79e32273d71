"""Edits: what to change in a model while it runs, compiled to hooks or written into the weights."""
