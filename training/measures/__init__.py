"""The table of measures of a policy during training.

A training loop takes a measure (`training.measures.measure`) and does not depend on what is measured. A new measure is a module
here, the dataclass of its settings, which stand in the section [dpo] of a recipe, and a row of `MEASURES`.
"""

from __future__ import annotations

from training.measures.settings import ToxicitySettings
from training.settings import Alternative

# Each measure (as `MEASURE` in its module), by the name in a recipe's `measure`.
MEASURES: dict[str, Alternative] = {
    "toxicity": Alternative(module="training.measures.toxicity", settings=ToxicitySettings, reads=("corpus", "scorer")),
}
