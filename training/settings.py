"""Declares, checks and documents settings of a recipe: meaning, type, default and range are declared once, at the field.

A section of a recipe is a frozen dataclass (`training.sections`) whose fields are made by `setting`. The errors about wrong
settings and the table of settings in the documentation are both derived from these fields.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from interp.errors import UserError

Options = TypeVar("Options")
NAMES = {int: "int", float: "float", str: "str", bool: "bool", dict: "table", list: "list"}


@dataclass(frozen=True)
class Alternative:
    """A value of a setting that has further settings, in the same section as that setting.

    Attributes:
        module: the module that implements it, imported on demand.
        settings: the dataclass of its settings.
        reads: the stages whose output it reads, beside those that the section's stage reads.
    """

    module: str
    settings: type
    reads: tuple[str, ...] = ()


@dataclass(frozen=True)
class Meaning:
    """The meaning and range of a setting.

    Attributes:
        text: its meaning, in the field's words.
        unit: of its value, where it has one.
        least, above, most: its range; `above` excludes the bound, the others include it.
        one_of: the values that it may have, where these are few.
        table: the dataclass of the table, or of each table of the list, that is its value.
        alternatives: the values that it may have, where each has settings of its own in the same section.
    """

    text: str
    unit: str = ""
    least: float | None = None
    above: float | None = None
    most: float | None = None
    one_of: tuple[Any, ...] = ()
    table: type | None = None
    alternatives: Mapping[str, Alternative] = field(default_factory=dict)

    @property
    def choices(self) -> tuple[Any, ...]:
        """The values that it may have, where these are few."""
        return self.one_of or tuple(self.alternatives)


def setting(text: str, *, default: Any = MISSING, **meaning: Any) -> Any:
    """A field of a section: its meaning, as `Meaning` has it, and its default; one without a default must be set."""
    return field(default=default, metadata={"meaning": Meaning(text, **meaning)})


def meaning_of(entry: Field[Any]) -> Meaning:
    """The meaning of a field; that of a plain dataclass has none in words."""
    return entry.metadata.get("meaning", Meaning(""))


def choices(section: type, name: str) -> tuple[Any, ...]:
    """The values that a setting of a section may have, the first of which is its default."""
    return next(meaning_of(entry).choices for entry in fields(section) if entry.name == name)


def alternatives(section: type, table: Mapping[str, Any]) -> dict[str, Alternative]:
    """The alternative that a section's table selects, by the name of each setting that has alternatives; unknown values are left out."""
    selected = {}
    for entry in fields(section):
        named = meaning_of(entry).alternatives
        value = table.get(entry.name, entry.default)
        if isinstance(value, str) and value in named:
            selected[entry.name] = named[value]
    return selected


def check_section(section: type, table: Any, title: str, inherited: Mapping[str, Any] | None = None) -> None:
    """Raise `UserError` for a setting that is unknown, of a wrong type, or out of its range.

    A missing setting is no error here, because another recipe may still add it; `read_section` checks for it.

    Args:
        inherited: the settings of the section that the table changes; they select the alternatives that the table does not.
    """
    selected = alternatives(section, {**(inherited or {}), **_mapping(table, title)}).values()
    _check(table, (section, *(alternative.settings for alternative in selected)), title)


def _mapping(table: Any, title: str) -> Mapping[str, Any]:
    if not isinstance(table, Mapping):
        raise UserError(f"{title} is not a section", f"write a [{_heading(title)}] section with its settings")
    return table


def _alternative_sections(section: type) -> list[type]:
    """The dataclasses of every alternative of a section's settings."""
    return [alternative.settings for entry in fields(section) for alternative in meaning_of(entry).alternatives.values()]


def _check(table: Mapping[str, Any], sections: Sequence[type], title: str) -> None:
    """Raise `UserError` for a setting that none of these dataclasses has or that is not as the one that has it says."""
    known = {entry.name: entry for section in sections for entry in fields(section)}
    hints = {name: hint for section in sections for name, hint in get_type_hints(section).items()}
    # What selects an alternative comes first, since a wrong one makes the settings of the right one unknown.
    for name, value in sorted(table.items(), key=lambda item: not (item[0] in known and meaning_of(known[item[0]]).alternatives)):
        if name not in known:
            raise UserError(f"{title} does not know {name!r}{did_you_mean(name, known)}", f"use {', '.join(known)}")
        if not fits(value, hints[name]):
            raise UserError(f"{title} sets {name} to {value!r}", f"give a value of type {type_name(hints[name])}")
        _check_value(name, value, meaning_of(known[name]), title)


def read_section(section: type[Options], table: Any, title: str) -> Options:
    """The settings of a section as an instance of its dataclass, without those of its alternatives (`read_alternative`).

    What a section has inherited for an alternative that it does not select is no error. Raises `UserError` as `check_section`,
    and for a setting that must be set.
    """
    selected = [alternative.settings for alternative in alternatives(section, _mapping(table, title)).values()]
    # The last one counts where several have a setting of one name.
    _check(table, (*_alternative_sections(section), *selected, section), title)
    return _instance(section, table, title)


def read_alternative(section: type, choice: str, table: Mapping[str, Any], title: str) -> Any:
    """The settings of the alternative that a section's table selects by the setting `choice`, as an instance of its dataclass.

    Raises `UserError` as `read_section`, of which the table has been found to be readable.
    """
    settings = alternatives(section, table)[choice].settings
    own = {name: value for name, value in table.items() if name in {entry.name for entry in fields(settings)}}
    _check(own, (settings,), title)
    return _instance(settings, own, title)


def _instance(section: type[Options], table: Mapping[str, Any], title: str) -> Options:
    known = [entry.name for entry in fields(section)]  # type: ignore[arg-type]
    for entry in fields(section):  # type: ignore[arg-type]
        if entry.default is MISSING and entry.default_factory is MISSING and entry.name not in table:
            raise UserError(f"{title} does not set {entry.name!r}", f"add `{entry.name} = ...` under [{_heading(title)}]")
    return section(**{name: value for name, value in table.items() if name in known})


def did_you_mean(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    """The closest known name as a question in brackets, or nothing where none is close."""
    # Transposed letters are a common typo that the usual distance rates as too far.
    near = [other for other in known if sorted(other) == sorted(name)] or difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def fits(value: Any, hint: Any) -> bool:
    """Whether a value read from TOML is of an annotated type; an int is accepted as a float, and a bool is no number."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, part) for part in get_args(hint))
    if origin is list:
        return isinstance(value, list) and all(fits(item, get_args(hint)[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return hint is Any or type(value) is hint


def type_name(hint: Any) -> str:
    """The name of an annotated type for readers of a recipe: `list of float`, `str or list of str`; None is left out."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(type_name(part) for part in parts if part is not type(None))
    if origin is list:
        return f"list of {type_name(parts[0])}"
    return NAMES.get(origin or hint, str(hint))


def settings_table(section: type) -> list[dict[str, str]]:
    """One row per setting of a section: setting, type, default, meaning (with unit, range and choices)."""
    hints = get_type_hints(section)
    rows = []
    for entry in fields(section):
        about, default = meaning_of(entry), entry.default
        words = about.text + (f", in {about.unit}" if about.unit else "")
        words += f"; one of {', '.join(f'`{value}`' for value in about.choices)}" if about.choices else ""
        spelled = "must be set" if default is MISSING else "not set" if default is None else f"`{spell(default)}`"
        rows.append({"setting": entry.name, "type": type_name(hints[entry.name]), "default": spelled, "meaning": words + _range(about)})
    return rows


def spell(value: Any) -> str:
    """A default as TOML spells it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(list(value)) if isinstance(value, tuple) else f"{value:g}"


def _check_value(name: str, value: Any, about: Meaning, title: str) -> None:
    if about.table is not None:
        for part in value if isinstance(value, list) else [value]:
            check_section(about.table, part, f"{title}, in {name},")
    if about.choices and value not in about.choices:
        raise UserError(f"there is no {name} {value!r}, which {title} sets", f"set {name} to one of {', '.join(map(str, about.choices))}")
    numbers = [number for number in (value if isinstance(value, list) else [value]) if isinstance(number, int | float)]
    low = [number for number in numbers if about.least is not None and not number >= about.least]
    low += [number for number in numbers if about.above is not None and not number > about.above]
    if low or any(about.most is not None and not number <= about.most for number in numbers):
        raise UserError(f"{name} is {value!r} in {title}", f"give a number{_range(about).replace(';', '', 1)}")


def _range(about: Meaning) -> str:
    bounds = [f"from {about.least:g}"] if about.least is not None else []
    bounds += [f"above {about.above:g}"] if about.above is not None else []
    bounds += [f"to {about.most:g}"] if about.most is not None else []
    return f"; {' '.join(bounds)}" if bounds else ""


def _heading(title: str) -> str:
    """The name of the section out of its title `section [name] of recipe 'x'`, or the title where it has no brackets."""
    return title.partition("[")[2].partition("]")[0] or title.partition(" ")[0]
