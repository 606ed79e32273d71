"""Edits: changes of a model while it runs, compiled to hooks, and changes of its weights."""
