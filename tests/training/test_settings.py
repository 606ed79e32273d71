"""Settings as data: what is refused, with which words, and that the documentation is what the fields say."""

# ruff: noqa: RUF009 -- `setting` only makes a dataclass field

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest

from interp.errors import UserError
from tests import ROOT
from training import sections
from training.cli import run_stage
from training.recipe import SHIPPED, load_recipe
from training.recipes_page import recipes_page
from training.settings import check_section, meaning_of, read_section, setting, settings_table
from training.stages import STAGES, stage_named


@dataclass(frozen=True, kw_only=True)
class Oven:  # a section of the tests' own
    heat: float = setting("how hot", unit="degrees", above=0, most=300)
    mode: str = setting("which fire", default="gas", one_of=("gas", "wood"))
    racks: list[int] | None = setting("where", default=None, least=0)
    turn: bool = setting("whether it turns", default=False)


TITLE = "section [oven] of recipe 'lunch'"


def test_a_section_is_read_with_its_defaults() -> None:
    assert read_section(Oven, {"heat": 200}, TITLE) == Oven(heat=200, mode="gas", racks=None, turn=False)
    assert read_section(Oven, {"heat": 20.5, "racks": [0, 2], "turn": True}, TITLE).racks == [0, 2]


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"haet": 3}, r"section \[oven\] of recipe 'lunch' does not know 'haet' \(did you mean 'heat'\?\)"),
        ({"zzz": 3}, r"does not know 'zzz'\. .*use heat, mode, racks, turn"),
        ({"heat": "hot"}, r"sets heat to 'hot'.*type float"),
        ({"heat": True}, r"sets heat to True.*type float"),
        ({"racks": [1, 2.5]}, r"sets racks to \[1, 2\.5\].*list of int"),
        ({"turn": 1}, r"sets turn to 1.*type bool"),
        ({"heat": 0.0}, r"heat is 0\.0 in section \[oven\].*a number above 0 to 300"),
        ({"heat": 301}, r"heat is 301"),
        ({"heat": float("nan")}, r"heat is nan"),
        ({"racks": [1, -1]}, r"racks is \[1, -1\].*from 0"),
        ({"mode": "coal"}, r"no mode 'coal'.*one of gas, wood"),
        (3, r"is not a section.*\[oven\]"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(table: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        check_section(Oven, table, TITLE)


def test_what_must_be_set_is_asked_for_only_when_the_section_is_read() -> None:
    check_section(Oven, {}, TITLE)
    with pytest.raises(UserError, match=r"does not set 'heat'.*add `heat = \.\.\.` under \[oven\]"):
        read_section(Oven, {}, TITLE)


def test_the_table_of_a_section_says_type_default_unit_range_and_choices() -> None:
    assert settings_table(Oven)[:3] == [
        {"setting": "heat", "type": "float", "default": "must be set", "meaning": "how hot, in degrees; above 0 to 300"},
        {"setting": "mode", "type": "str", "default": '`"gas"`', "meaning": "which fire; one of `gas`, `wood`"},
        {"setting": "racks", "type": "list of int", "default": "not set", "meaning": "where; from 0"},
    ]


def test_a_recipe_with_an_unknown_setting_or_section_is_refused_when_it_is_loaded(tmp_path: Path) -> None:
    cases = {
        "[dpo]\nbate = 1\n": r"section \[dpo\] of recipe 'r' does not know 'bate' \(did you mean 'beta'\?\)",
        "[dop]\nbeta = 1\n": r"recipe 'r' does not know 'dop' \(did you mean 'dpo'\?\)",
        "[corpus]\nsources = [{ nam = 'a' }]\n": r"section \[corpus\] of recipe 'r', in sources, does not know 'nam'",
        "sead = 3\n": r"recipe 'r' does not know 'sead'",
    }
    for text, says in cases.items():
        (tmp_path / "r.toml").write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=says):
            load_recipe(tmp_path / "r.toml")


def test_every_setting_of_every_shipped_recipe_is_known_and_every_run_finds_what_must_be_set() -> None:
    for file in sorted(SHIPPED.glob("*.toml")):
        recipe = load_recipe(file)
        for name in recipe.settings:
            if name not in {"continue", "sharpen", "grid"}:  # completed by the parts before; and read by `training.grid`
                assert recipe.settings_as(STAGES[name].settings, name)
        if "dpo" in recipe.settings:
            assert recipe.alternative_as("dpo", "measure")


def test_every_setting_has_a_meaning_and_what_is_only_watched_is_a_setting() -> None:
    for row in STAGES.values():
        assert all(meaning_of(entry).text for entry in fields(row.settings)), row.name
        assert row.watched <= {entry.name for entry in fields(row.settings)}, row.name
        for entry in fields(row.settings):
            for alternative in meaning_of(entry).alternatives.values():
                further = fields(alternative.settings)
                assert all(meaning_of(one).text for one in further), row.name
                assert not {one.name for one in further} & {one.name for one in fields(row.settings)}, row.name
                assert set(alternative.reads) <= set(list(STAGES)[: list(STAGES).index(row.name)]), row.name
    assert sections.DpoSettings.stop_at_ratio == -1


def test_the_page_of_settings_is_what_the_fields_say() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert page == recipes_page(), "python -m training.recipes_page > docs/recipes.md"
    assert "| `beta` | float | must be set |" in page
    assert "| `checkpoint_every` * |" in page
    assert page.index('With `measure = "toxicity"` also') < page.index("| `kl_prompts` | int | `32` |") < page.index("## [bundle]")


def test_the_settings_of_a_stage_can_be_printed(capsys: pytest.CaptureFixture[str]) -> None:
    run_stage("settings", "dpo")
    assert "| `beta` |" in capsys.readouterr().out
    with pytest.raises(UserError, match="no stage 'dop'"):
        run_stage("settings", "dop")
    assert stage_named("dpo").settings is sections.DpoSettings
