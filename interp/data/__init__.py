"""What ships to read: prompts, passages and the word list."""
