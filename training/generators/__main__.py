"""`python -m training.generators RECIPE`: the generators side by side."""

from __future__ import annotations

import sys

from training.generators.table import main

sys.exit(main())
