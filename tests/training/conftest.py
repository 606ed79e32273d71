"""A small language that the tests of pretraining and of what goes on from it share."""

from __future__ import annotations

import gc

import pytest

from tests.training.grammar import build_language
from training.recipe import DATA_SETTING, Recipe


@pytest.fixture(scope="module", autouse=True)
def _quick_collection() -> None:
    """Every run ends in a search for garbage; what libraries hold that were imported since the tests were collected is passed over."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """The recipe of the small language with its stages corpus and tokenizer run; tests work on copies of them."""
    root = tmp_path_factory.mktemp("language")
    recipe = build_language(root)
    (root / "more.txt").write_text(
        "".join(f"Oskle walked {n} times to the quiet river and sang there.\n" for n in range(800)), encoding="utf-8"
    )
    (root / "wiki.tokens").write_text("".join(f"the market of {n} by the river\n" for n in range(60)), encoding="utf-8")
    return recipe


@pytest.fixture
def data(built: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sources of the small language are found beside it."""
    monkeypatch.setenv(DATA_SETTING, str(built.run.parent.parent))
