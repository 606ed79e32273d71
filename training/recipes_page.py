"""The page of every setting of a recipe, generated from the table of stages: `python -m training.recipes_page > docs/recipes.md`."""

from __future__ import annotations

import sys
from dataclasses import fields

from training import sections
from training.settings import meaning_of, settings_table
from training.stages import STAGES, Stage, stage_named

INTRODUCTION = """# Every setting of a recipe

Generated from `training/sections.py` by `python -m training.recipes_page > docs/recipes.md`; a test compares the two.

A recipe is a TOML file with a section for each stage. Above the sections it may set `name` (that of its run's folder; the file's
where not set), `seed` (0, or that of the recipe it extends) and `extends` (a recipe whose settings it changes). A setting that there is
not, or one of another type or out of its range, is an error that names it. `bypass train settings STAGE` prints a section's table.
Settings marked * say how a run is watched, not what it makes: changing one makes nothing anew.
"""


def table(section: type, watched: frozenset[str] = frozenset()) -> str:
    """The settings of a section as a table in Markdown."""
    lines = ["| setting | type | default | meaning |", "|---|---|---|---|"]
    for row in settings_table(section):
        mark = " *" if row["setting"] in watched else ""
        lines.append(f"| `{row['setting']}`{mark} | {row['type']} | {row['default']} | {row['meaning'].replace('|', chr(92) + '|')} |")
    return "\n".join(lines)


def section_text(stage: Stage) -> str:
    """The heading, first sentence and table of one section, and the tables of the alternatives of its settings."""
    text = f"## [{stage.name}]\n\n{first_sentence(stage.settings)}\n\n{table(stage.settings, stage.watched)}\n"
    for entry in fields(stage.settings):
        for value, alternative in meaning_of(entry).alternatives.items():
            text += f'\nWith `{entry.name} = "{value}"` also: {first_sentence(alternative.settings)}\n\n{table(alternative.settings)}\n'
    return text


def first_sentence(section: type) -> str:
    """The first paragraph of a dataclass's docstring."""
    return (section.__doc__ or "").partition("\n\n")[0]


def settings_text(name: str) -> str:
    """The part of the page for one stage. Raises `UserError` for a stage that there is not."""
    return section_text(stage_named(name))


def recipes_page() -> str:
    """The whole page."""
    sources = [
        ("A source", sections.SourceSettings, "An entry of `sources`, `held_out`, or `prompt_source`; [probe] is one itself."),
        ("A labelled source", sections.LabelledSourceSettings, "An entry of `sources` and `neutral` of [scorer]."),
    ]
    tail = [f"## {title}\n\n{words}\n\n{table(section)}\n" for title, section, words in sources]
    return "\n".join([INTRODUCTION, *map(section_text, STAGES.values()), *tail])


if __name__ == "__main__":
    sys.stdout.write(recipes_page())
