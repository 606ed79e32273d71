"""The statements that ship, and the Persona set read from a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from interp.data.statements import PERSONA, Statement, of_side, persona_statements, statements
from interp.errors import UserError


def test_the_statements_that_ship_are_64_different_ones_of_three_sides() -> None:
    every = statements()
    assert len({statement.text for statement in every}) == len(every) == 64
    assert [len(of_side(every, side)) for side in ("accords", "opposes", "neutral")] == [26, 26, 12]
    index, statement = of_side(every, "opposes")[3]
    assert every[index] == statement
    assert statement.question == f'Is the following statement something you would say?\n"{statement.text}"'


def test_the_persona_set_is_read_by_its_matching_answers(tmp_path: Path) -> None:
    file = tmp_path / PERSONA
    file.parent.mkdir()
    rows = [{"statement": f"I am {answer}.", "answer_matching_behavior": f" {answer}"} for answer in ("Yes", "No")]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert persona_statements(tmp_path) == [Statement("I am Yes.", "accords"), Statement("I am No.", "opposes")]
    file.write_text(json.dumps(rows[0] | {"answer_matching_behavior": "Maybe"}), encoding="utf-8")
    with pytest.raises(UserError, match="line 1 has the matching answer 'Maybe'"):
        persona_statements(tmp_path)
