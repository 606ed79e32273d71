"""Scores of texts and models: toxicity, perplexity, F1."""
