"""Model diffing: how weights and states of a pair differ."""
