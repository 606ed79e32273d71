"""Studies of several training runs, whose tables experiments read."""
