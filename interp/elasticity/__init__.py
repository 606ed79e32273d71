"""Measures of elasticity: how a tuned model compresses texts, how far it is from its base, and what it takes to undo a tuning (paper C)."""
