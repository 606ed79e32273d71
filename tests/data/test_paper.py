"""The paper's material in a folder of the user's: found only where all of it is there, and read as sentences of WikiText."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from interp.data.paper import FEWEST_WORDS, FILES, MOST_WORDS, PROMPT_WORDS, paper_folder, read_paper, wikitext_passages
from interp.errors import UserError

SENTENCES = [" ".join([f"w{number}" for number in range(start, start + 19)]) + " ." for start in range(0, 200, 20)]


def test_the_folder_is_that_of_the_setting_and_only_with_every_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BYPASS_DATA", raising=False)
    assert paper_folder() is None
    monkeypatch.setenv("BYPASS_DATA", str(tmp_path))
    for name in FILES:
        assert paper_folder() is None
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"prompt": f"of {name}"}) + "\n")
    assert paper_folder() == tmp_path
    (tmp_path / FILES[-1]).write_text("\n = Head = \n\n " + " ".join(SENTENCES[:3]) + " \n")
    texts = read_paper(tmp_path)
    assert (texts.challenge, texts.logit_lens, texts.toxic) == tuple([f"of {name}"] for name in FILES[:3])
    assert [passage.text for passage in texts.passages] == [" ".join(SENTENCES[:3])]


def test_passages_are_whole_sentences_of_one_paragraph_in_order_without_headings(tmp_path: Path) -> None:
    file = tmp_path / "wiki.tokens"
    first, second = " ".join(SENTENCES[:6]), " ".join(SENTENCES[6:8])
    file.write_text(f" \n = A = \n \n {first} \n {SENTENCES[9]} \n = = B = = \n {second} \n")
    passages = wikitext_passages(file)
    assert [passage.text for passage in passages] == [" ".join(SENTENCES[:4]), " ".join(SENTENCES[4:6]), second]
    assert all(FEWEST_WORDS <= len(passage.text.split()) <= MOST_WORDS for passage in passages)
    assert all(len(passage.prompt.split()) == PROMPT_WORDS and passage.continuation.startswith(" ") for passage in passages)
    file.write_text(" = Only a head = \n")
    with pytest.raises(UserError, match="holds no paragraph of 30 words"):
        wikitext_passages(file)
