"""Studies of several training runs, read by experiments."""
