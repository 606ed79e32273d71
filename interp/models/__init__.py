"""Models and pairs: strict loading, weights by meaning, hooks, and the table of sites."""
