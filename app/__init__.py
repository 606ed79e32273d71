"""The browser app. Its pages call `interp` and nothing else; `app.launch` starts it as a process of its own."""
