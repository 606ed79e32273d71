"""`CRITERIA`: all versions of the criterion of each experiment on paper C, by the experiment's id."""

from __future__ import annotations

from pathlib import Path

from interp.experiments.criteria import read_criteria

FILE = Path(__file__).parent / "criteria.toml"
CRITERIA = read_criteria(FILE)
