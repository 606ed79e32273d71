"""Settings of whoever starts the app, read from the environment: the pairs on offer, the folders of reports and runs, and demo mode.

Visitors choose among these; in demo mode nothing that they type is read as a path."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from interp.data.texts import TEXTS_FOLDER
from interp.errors import UserError
from interp.models.named import NAMED, installed

PAIR, MODELS, REPORT, RUNS, DEMO = "BYPASS_PAIR", "BYPASS_MODELS", "BYPASS_REPORT", "BYPASS_RUNS", "BYPASS_DEMO"
BUNDLED = "bundled"
# Everything that ships, and the reports that were made of the pairs among it: first of the one that the app opens on.
BUNDLE = TEXTS_FOLDER.parent
SHIPPED_REPORT = BUNDLE / "report"
SHIPPED_REPORTS = (SHIPPED_REPORT, *sorted(BUNDLE.glob("*/report")))
# Two folders or hub ids, or None for the pair that ships.
Source = tuple[str, str] | None


@dataclass(frozen=True)
class Limits:
    """The most that one visitor may request at once; `undo_minutes` is what the plan of a run of the page Elasticity may take."""

    prompt_characters: int
    new_tokens: int
    sweep_points: int
    sweep_prompts: int
    patched_tokens: int
    audited_pairs: int
    uploaded_bytes: int
    undo_minutes: int


ALONE = Limits(prompt_characters=4000, new_tokens=100, sweep_points=9, sweep_prompts=128, patched_tokens=64,
               audited_pairs=256, uploaded_bytes=2_000_000, undo_minutes=120)  # fmt: skip
VISITORS = Limits(prompt_characters=400, new_tokens=40, sweep_points=5, sweep_prompts=16, patched_tokens=24,
                  audited_pairs=64, uploaded_bytes=200_000, undo_minutes=6)  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """How much the pages measure by default.

    Attributes:
        prompts: how many challenge prompts the page Bypass can read; `visitors_prompts`: in demo mode; `usual_prompts`: at first.
        shift_draws: random shifts beside one neuron's region; `matched_draws`: matched neurons beside toxic ones.
        control_draws: random controls of a sweep's edit and of the un-aligned model's keys.
        prompt_step: the first page measures every so many of the held-out challenge prompts, `passage_step` of the passages.
        argued_step: its experiments read every so many of all challenge prompts.
        light: parameters up to which a pass over the prompts takes few seconds on a few cores, and needs no job.
    """

    prompts: tuple[int, ...] = (40, 80, 140, 280)
    visitors_prompts: tuple[int, ...] = (40, 80)
    usual_prompts: int = 80
    shift_draws: int = 200
    matched_draws: int = 40
    control_draws: int = 3
    prompt_step: int = 3
    passage_step: int = 10
    argued_step: int = 10
    light: float = 3e7


def sizes() -> Sizes:
    """The default sizes."""
    return Sizes()


def demo() -> bool:
    """Whether demo mode is on: tight limits, and only the pairs on offer can be read."""
    return os.environ.get(DEMO, "0") not in ("", "0")


def limits() -> Limits:
    """The limits in force."""
    return VISITORS if demo() else ALONE


def offered() -> dict[str, Source]:
    """The pairs on offer, by name: that of `BYPASS_PAIR`, the one that ships, named ones that are installed, those of `BYPASS_MODELS`.

    `BYPASS_MODELS` is a folder with one folder per pair, each with `base` and `tuned` in it. What this user may not read is
    not offered.
    """
    pairs: dict[str, Source] = {}
    text = os.environ.get(PAIR, "").strip()
    if text:
        source = parse_pair(text)
        pairs[source[0] if source[0] == source[1] and source[0] in NAMED else "chosen at the start"] = source
    pairs[BUNDLED] = None
    pairs |= {name: (name, name) for name in NAMED if name not in pairs and installed(name) and NAMED[name].tuned.is_dir()}
    root = Path(os.environ.get(MODELS, ""))
    if os.environ.get(MODELS, "").strip() and os.path.isdir(root) and os.access(root, os.R_OK | os.X_OK):
        for folder in sorted(root.iterdir()):
            if all(_readable(folder / side / "config.json") for side in ("base", "tuned")):
                pairs[folder.name] = (str(folder / "base"), str(folder / "tuned"))
    return pairs


def _readable(file: Path) -> bool:
    """Whether it is a file that this user may read (`Path.is_file` raises below a folder that may not be entered)."""
    return os.path.isfile(file) and os.access(file, os.R_OK)


def parse_pair(text: str) -> tuple[str, str]:
    """The two names of `base::tuned`, or the name of a pair twice. Raises `UserError` for other text."""
    if text in NAMED:
        return text, text
    base, separator, tuned = text.partition("::")
    if not (separator and base.strip() and tuned.strip()):
        raise UserError(f"{text!r} does not name two models", f"write base::tuned, each a folder or a hub id, or {' or '.join(NAMED)}")
    return base.strip(), tuned.strip()


def report_folder() -> Path:
    """The folder of the report, `report` unless `BYPASS_REPORT` names another."""
    return Path(os.environ.get(REPORT) or "report")


def runs_folder() -> Path:
    """The folder of training runs, `runs` unless `BYPASS_RUNS` names another."""
    return Path(os.environ.get(RUNS) or "runs")
