"""The commands, one file per concern. Nothing heavy is imported before a command runs; `common` holds what they share."""
