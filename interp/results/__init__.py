"""What an experiment returns: numbers, tables and figures, saved as JSON and CSV."""
