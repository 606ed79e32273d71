"""Lists what the image installs before any source is copied: the project's dependencies and those of the extras it names.

pip installs the dependencies of a project only together with the project, which would put every edit of the source in
front of the largest layer.

    python3 container/requirements.py pyproject.toml toxicity app
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def listed(project: Path, extras: list[str]) -> list[str]:
    """The requirements of a `pyproject.toml` and of these extras, in their order.

    Raises:
        SystemExit: the project has no such extra.
    """
    table = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    known = table.get("optional-dependencies", {})
    unknown = [name for name in extras if name not in known]
    if unknown:
        raise SystemExit(f"{project} has no extra {unknown[0]!r}; it has: {', '.join(sorted(known))}")
    return [*table["dependencies"], *(line for name in extras for line in known[name])]


if __name__ == "__main__":
    print(*listed(Path(sys.argv[1]), sys.argv[2:]), sep="\n")
