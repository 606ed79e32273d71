"""Activation patching and path patching, within a model and across the pair."""
