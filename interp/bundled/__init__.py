"""The files that ship with the package: the pair, its probe and scorer, texts, logs and the written report."""

from pathlib import Path

BUNDLED = Path(__file__).parent
