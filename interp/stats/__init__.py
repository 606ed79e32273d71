"""Intervals over the right unit, and matched controls."""
