"""Measures of preference pairs before, during and after tuning on them (paper B: likelihood displacement)."""
