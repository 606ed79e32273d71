"""Steering: edits as text, and the strength at which they cost as much as another."""
