"""Texts that ship with the project: prompts, passages and the word list."""
