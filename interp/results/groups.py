"""The groups of experiments by the first letter of their ids: the papers, and what is of no paper.

The page and the app name the groups of results that were read from a file, where no experiment is registered, so this is one
table here and not a part of each paper's package.
"""

from __future__ import annotations

PAPERS = {"A": "Paper A", "B": "Paper B", "C": "Paper C"}
TITLES = PAPERS | {"X": "Beyond the papers", "W": "Other methods for the same effect", "Y": "An alternative explanation"}
# The paper in whose report experiments of a letter stand; those of other letters are a user's own and stand in every report.
REPORTED_WITH = {"A": "A", "X": "A", "W": "A", "Y": "A", "B": "B", "C": "C"}
