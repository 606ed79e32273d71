"""Model diffing: the differences of weights and states between the two models of a pair."""
