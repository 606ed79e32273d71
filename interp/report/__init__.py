"""The page that a report writes, and its table in the terminal."""
