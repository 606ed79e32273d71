"""The one exception for bad input: it says what was given, what was expected and how to mend it.

The command line turns it into exit code 2 and one line; the app into a message; a notebook shows the text.
"""

from __future__ import annotations


class UserError(ValueError):
    """Something the user gave cannot be used: `problem` says what, `mend` says what to do about it."""

    def __init__(self, problem: str, mend: str = "") -> None:
        self.problem = problem
        self.mend = mend
        super().__init__(f"{problem}. To mend it: {mend}." if mend else f"{problem}.")
