"""Results of experiments: numbers, tables and figures, saved as JSON and CSV."""
