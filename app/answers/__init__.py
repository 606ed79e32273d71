"""What the pages ask of `interp`: cached by what was asked, in modules that can be imported (a page itself is run as a script)."""
