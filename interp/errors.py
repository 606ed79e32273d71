"""`UserError`: the exception for bad input, which says what was given, what was expected and how to fix it.

The command line turns it into exit code 2 and one line, the app into a message, and a notebook shows the text.
"""

from __future__ import annotations


class UserError(ValueError):
    """Bad input: `problem` says what cannot be used and why, `fix` says what to do about it."""

    def __init__(self, problem: str, fix: str = "") -> None:
        self.problem = problem
        self.fix = fix
        super().__init__(f"{problem}. Fix: {fix}." if fix else f"{problem}.")


class Notice(UserWarning):
    """What a result may depend on and the user should know, in one line; the command line prints it on stderr."""
