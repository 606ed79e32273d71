"""Bootstrap intervals over prompts, and matched controls."""
