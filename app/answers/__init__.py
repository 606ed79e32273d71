"""What the pages compute with `interp`, cached, in modules that can be imported (a page itself is run as a script)."""
