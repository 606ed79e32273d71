"""The report as a page and as a table in the terminal."""
