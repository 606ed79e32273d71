"""Steering: edits written as text, sweeps over their strength, and the strength at which the loss is a given one."""
