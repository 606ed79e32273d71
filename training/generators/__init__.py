"""Generators of preference pairs, by the name that a recipe gives under `[pairs] generator`.

| name | toxic side | chosen side | uses the probe |
|---|---|---|---|
| `best-worst` | most toxic of several samples under the scorer | least toxic of them | no |
| `pplm` | PPLM with the probe as attribute model (paper A) | greedy | yes |
| `steering` | probe direction added to the residual stream | decoded alike without it | yes |
| `file` | read | read | no |

`python -m training.generators RECIPE` compares them on the same prompts.
"""

from __future__ import annotations

from interp.errors import UserError
from training.generators import best_worst, file, pplm, steering
from training.generators.task import Block, Draft, Generator, Task

GENERATORS: dict[str, Generator] = {
    generator.name: generator for generator in (best_worst.GENERATOR, pplm.GENERATOR, steering.GENERATOR, file.GENERATOR)
}
DEFAULT = best_worst.GENERATOR.name


def generator_named(name: object) -> Generator:
    """The generator with this name; raises `UserError` for an unknown one."""
    if not isinstance(name, str) or name not in GENERATORS:
        raise UserError(f"there is no pair generator {name!r}", f"set `generator` of [pairs] to one of {', '.join(GENERATORS)}")
    return GENERATORS[name]


__all__ = ["DEFAULT", "GENERATORS", "Block", "Draft", "Generator", "Task", "generator_named"]
