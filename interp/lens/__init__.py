"""The logit lens and direct logit attribution."""
