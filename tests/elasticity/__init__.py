"""Tests of the measures of elasticity, on tiny models and closed forms."""
