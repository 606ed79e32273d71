"""Rows of invented words that tests audit, and a text that a page must not run."""

from __future__ import annotations

import random
from typing import Any

from tests.conftest import WORDS

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def rows(count: int = 24, seed: int = 0) -> list[dict[str, Any]]:
    """Pairs of invented words, of different lengths; the last three have no gradient, no room, and a prompt without tokens."""
    rng = random.Random(seed)

    def words(low: int, high: int) -> str:
        return "".join(f" {rng.choice(WORDS)}" for _ in range(rng.randint(low, high)))

    made = [{"prompt": words(2, 6), "chosen": words(1, 8), "rejected": words(1, 8), "id": f"r{n}"} for n in range(count - 3)]
    made += [{"prompt": " the", "chosen": " river", "rejected": " river", "id": "same"},
             {"prompt": words(40, 40), "chosen": " a", "rejected": " b", "id": "long"},
             {"prompt": "", "chosen": " a", "rejected": " b", "id": "none"}]  # fmt: skip
    return made
