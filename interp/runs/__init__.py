"""What a training run leaves behind: its log's schema, and what reads and draws it."""
