"""The table of stages: what is derived from it, and that each row names something that there is."""

from __future__ import annotations

import ast

import pytest

from interp.errors import UserError
from tests import ROOT
from training.run import stage_function
from training.stages import STAGES, base_training, lineage, runnable, stage_named


@pytest.mark.parametrize("name", runnable())
def test_the_function_that_a_row_names_takes_a_recipe(name: str) -> None:
    row = stage_named(name)
    tree = ast.parse((ROOT / "training" / f"{row.module}.py").read_text(encoding="utf-8"))
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert functions[row.function].args.args[0].arg == "recipe"
    assert callable(stage_function(name))


def test_a_stage_reads_only_what_stands_before_it() -> None:
    names = list(STAGES)
    for number, (name, row) in enumerate(STAGES.items()):
        assert row.name == name
        assert set(row.reads) <= set(names[:number]), name


def test_what_is_derived_from_the_table() -> None:
    assert runnable() == ("corpus", "tokenizer", "pretrain", "continue", "sharpen", "scorer", "probe", "pairs", "dpo", "bundle")
    assert base_training() == ("pretrain", "continue", "sharpen")
    assert lineage("tokenizer") == ("corpus", "tokenizer")
    assert lineage("probe") == ("base", "corpus", "tokenizer", "pretrain", "continue", "sharpen", "probe")
    assert {name for name, row in STAGES.items() if row.parallel} == {*base_training(), "dpo"}
    assert {name for name, row in STAGES.items() if row.resumed} == {*base_training(), "dpo", "scorer"}


def test_an_unknown_stage_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(UserError, match=r"no stage 'tune'.*corpus, tokenizer"):
        lineage("tune")
