"""Projection on the vocabulary and search, by hand and with a planted word."""

from __future__ import annotations

import pytest
import torch

from interp.errors import UserError

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize("final_norm", [False, True])
@pytest.mark.parametrize("largest", [True, False])
def test_top_tokens_are_the_products_with_the_unembedding(any_model, final_norm: bool, largest: bool) -> None:
    from interp.neurons.vocabulary import top_tokens

    vectors = torch.randn(3, any_model.d_model, generator=torch.Generator().manual_seed(1))
    found = top_tokens(any_model, vectors, top=6, final_norm=final_norm, largest=largest)
    if final_norm:
        norm = any_model.final_norm
        # Referee: the norm itself, on a vector that it neither centres nor rescales.
        centred = any_model.family == "gelu"
        x = vectors - vectors.mean(dim=1, keepdim=True) if centred else vectors
        size = x.square().mean(dim=1, keepdim=True).sqrt()
        gained = norm.forward(x / size) - (norm.bias if centred else 0)
        gain = gained / (x / size)
        torch.testing.assert_close(gain, any_model.final_gain.expand_as(gain), atol=1e-3, rtol=1e-3)
        vectors = vectors * any_model.final_gain
    products = vectors @ any_model.hf.lm_head.weight.T
    expected = products.sort(dim=1, descending=largest)
    assert torch.equal(found.ids, expected.indices[:, :6])
    torch.testing.assert_close(found.scores, expected.values[:, :6], atol=1e-5, rtol=1e-5)
    assert found.words[2][1] == any_model.tokenizer.decode([int(expected.indices[2, 1])])


def test_one_vector_is_projected_as_one_row_and_rows_of_padding_are_left_out(fresh_gpt2) -> None:
    from interp.neurons.vocabulary import top_tokens

    size = len(fresh_gpt2.tokenizer)
    wide = torch.nn.Parameter(torch.cat([fresh_gpt2.hf.lm_head.weight, 1000 * torch.ones(3, fresh_gpt2.d_model)]), requires_grad=False)
    fresh_gpt2.hf.lm_head.weight = wide
    found = top_tokens(fresh_gpt2, torch.ones(fresh_gpt2.d_model), top=5, labels=["ones"])
    assert found.ids.shape == (1, 5)
    assert int(found.ids.max()) < size
    frame = found.to_frame()
    assert list(frame.columns) == ["vector", "rank", "token", "score", "id"]
    assert (frame["vector"].unique().tolist(), frame["rank"].tolist()) == (["ones"], [1, 2, 3, 4, 5])


def test_profanity_is_masked_in_frames_unless_asked_for() -> None:
    from interp.neurons.vocabulary import TopTokens, VocabularyIndex, search

    tokens = TopTokens(torch.tensor([[1]]), torch.tensor([[2.0]]), [[" shit"]], ("v",))
    assert tokens.to_frame()["token"].tolist() == [" sh*t"]
    assert tokens.to_frame(masked=False)["token"].tolist() == [" shit"]
    assert tokens.words == [[" shit"]]
    index = VocabularyIndex(tokens.ids.int().numpy(), tokens.scores.half().numpy(), ("a", " shit"), 1)
    assert search(index, "shit")["token"].tolist() == [" sh*t"]
    assert search(index, "shit", masked=False)["token"].tolist() == [" shit"]
    assert index.to_frame(0, 0)["token"].tolist() == [" sh*t"]


def test_the_index_holds_what_top_tokens_gives_for_every_neuron(model) -> None:
    from interp.neurons.vocabulary import build_index, top_tokens

    steps: list[tuple[int, int]] = []
    index = build_index(model, top=5, progress=lambda done, of: steps.append((done, of)))
    assert steps == [(1, 3), (2, 3), (3, 3)]
    for layer in range(model.n_layers):
        expected = top_tokens(model, model.value_vectors(layer), top=5)
        rows = slice(layer * model.d_mlp, (layer + 1) * model.d_mlp)
        assert torch.equal(torch.from_numpy(index.ids[rows]).long(), expected.ids)
        torch.testing.assert_close(torch.from_numpy(index.scores[rows]).float(), expected.scores, atol=1e-3, rtol=1e-3)
    assert index.to_frame(2, 1)["token"].tolist() == top_tokens(model, model.value_vectors(2)[1], top=5).words[0]


def test_search_finds_the_planted_neuron_first_in_any_case_and_spacing(planted) -> None:
    from interp.neurons.vocabulary import build_index, search

    index = build_index(planted.model, top=20)
    for word in ("snarg", " snarg", "SNARG", " Snarg "):
        found = search(index, word)
        assert (found.loc[0, "layer"], found.loc[0, "neuron"], found.loc[0, "rank"]) == (planted.layer, planted.index, 1)
        assert (found.loc[0, "token"], found.loc[0, "match"]) == (planted.word, "whole")
    score = float(planted.model.unembedding[planted.word_id] @ planted.model.value_vectors(planted.layer)[planted.index])
    assert found.loc[0, "score"] == pytest.approx(score, rel=1e-3)


def test_search_is_complete_and_ordered_by_rank(planted) -> None:
    from interp.neurons.vocabulary import build_index, search

    index = build_index(planted.model, top=10)
    found = search(index, "river", limit=10_000)
    tokens = [token for token in range(400) if planted.model.tokenizer.decode([token]).strip() == "river"]
    expected = {}
    for row, ids in enumerate(index.ids.tolist()):
        ranks = [rank + 1 for rank, token in enumerate(ids) if token in tokens]
        if ranks:
            expected[row // index.d_mlp, row % index.d_mlp] = min(ranks)
    assert len(expected) > 3
    assert {(layer, neuron): rank for layer, neuron, rank in found[["layer", "neuron", "rank"]].to_numpy().tolist()} == expected
    assert found["rank"].is_monotonic_increasing
    assert not found.duplicated(["layer", "neuron"]).any()
    assert len(search(index, "river", limit=2)) == 2


def test_beginnings_count_when_asked_for_or_when_there_is_no_whole_word() -> None:
    import numpy as np

    from interp.neurons.vocabulary import VocabularyIndex, search

    words = (" Rid", "river", " riverside", "x", "ridge")
    ids = np.array([[2, 3], [3, 1], [0, 4], [3, 3]], dtype=np.int32)
    index = VocabularyIndex(ids, np.ones((4, 2), dtype=np.float16), words, 2)
    assert search(index, "river")[["layer", "neuron", "rank"]].to_numpy().tolist() == [[0, 1, 2]]
    both = search(index, "river", prefix=True)
    assert both[["layer", "neuron", "match"]].to_numpy().tolist() == [[0, 1, "whole"], [0, 0, "prefix"]]
    only = search(index, "ri")
    assert set(only["match"]) == {"prefix"}
    assert only[["layer", "neuron"]].to_numpy().tolist() == [[0, 0], [1, 0], [0, 1]]


def test_a_word_that_no_neuron_writes_gives_no_rows_and_an_unknown_one_names_the_nearest(planted) -> None:
    from interp.neurons.vocabulary import build_index, search

    index = build_index(planted.model, top=1)
    absent = next(word for i, word in enumerate(index.words) if word.strip().isalpha() and len(word) > 4 and i not in index.ids)
    assert len(search(index, absent, prefix=False)) == 0
    with pytest.raises(UserError, match=r"nearest tokens: .*snarg"):
        search(index, "snargo")
    with pytest.raises(UserError, match="empty"):
        search(index, "  ")


def test_a_stored_index_is_read_again_and_a_damaged_one_is_made_again(planted, tmp_path, monkeypatch) -> None:
    from interp.neurons import vocabulary

    first = vocabulary.build_index(planted.model, top=8, cache=tmp_path / "new")
    file = tmp_path / "new" / f"{planted.model.digest}.safetensors"
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    with monkeypatch.context() as patch:
        patch.setattr(vocabulary, "_project", None)
        again = vocabulary.build_index(planted.model, top=5, cache=file.parent)
    assert (again.ids == first.ids[:, :5]).all()
    assert (again.scores == first.scores[:, :5]).all()
    file.write_bytes(file.read_bytes()[:100])
    rebuilt = vocabulary.build_index(planted.model, top=8, cache=file.parent)
    assert (rebuilt.ids == first.ids).all()
    assert vocabulary.build_index(planted.model, top=9, cache=file.parent).top == 9


def test_what_cannot_be_projected_is_refused(gpt2) -> None:
    from interp.neurons.vocabulary import top_tokens

    for vectors, settings, message in [
        (torch.ones(3), {}, "shape"),
        (torch.ones(2, gpt2.d_model), {"top": 0}, "0 tokens"),
        (torch.ones(2, gpt2.d_model), {"top": 10**6}, "ask for 1 to"),
        (torch.ones(2, gpt2.d_model), {"labels": ["one"]}, "1 labels"),
    ]:
        with pytest.raises(UserError, match=message):
            top_tokens(gpt2, vectors, **settings)
