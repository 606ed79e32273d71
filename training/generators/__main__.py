"""Compares the pair generators on the same prompts: `python -m training.generators RECIPE`."""

from __future__ import annotations

import sys

from training.generators.table import main

sys.exit(main())
