"""The app as people meet it: a real server, a real browser, the pair that ships."""
