"""The commands, one file each. Nothing heavy is imported before a command runs; `common` has what they share."""
