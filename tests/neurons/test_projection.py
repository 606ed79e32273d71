"""Which tokens a vector promotes where many tokens are rare: centring, cosines and common tokens, by hand."""

from __future__ import annotations

import pytest
import torch

from interp.errors import UserError

pytestmark = pytest.mark.oracle


def test_centring_alone_shifts_every_score_of_a_vector_by_one_number_and_leaves_the_order(any_model) -> None:
    vector = torch.randn(any_model.d_model, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    rows = any_model.hf.lm_head.weight.detach().double()
    plain, centred = rows @ vector, (rows - rows.mean(dim=0)) @ vector
    shift = plain - centred
    torch.testing.assert_close(shift, shift.mean().expand_as(shift))
    assert torch.equal(plain.argsort(), centred.argsort())


@pytest.mark.parametrize("final_norm", [False, True])
def test_the_cosine_is_that_with_the_row_minus_the_mean_row(any_model, final_norm: bool) -> None:
    from interp.neurons.projection import Projection
    from interp.neurons.vocabulary import top_tokens

    vectors = torch.randn(3, any_model.d_model, generator=torch.Generator().manual_seed(1))
    tokens = top_tokens(any_model, vectors, top=6, final_norm=final_norm, projection=Projection(cosine=True))
    rows = any_model.hf.lm_head.weight.detach()[: len(any_model.tokenizer)]
    rows = rows - rows.mean(dim=0)
    rows = rows * any_model.final_gain if final_norm else rows
    cosines = torch.nn.functional.cosine_similarity(vectors[:, None], rows[None], dim=2).sort(dim=1, descending=True)
    assert torch.equal(tokens.ids, cosines.indices[:, :6])
    torch.testing.assert_close(tokens.scores, cosines.values[:, :6], atol=1e-5, rtol=1e-5)


def test_rare_tokens_that_share_a_long_direction_win_dot_products_and_not_cosines(fresh_gpt2) -> None:
    from interp.neurons.projection import Projection
    from interp.neurons.vocabulary import top_tokens

    generator = torch.Generator().manual_seed(0)
    size, width = len(fresh_gpt2.tokenizer), fresh_gpt2.d_model
    rows = torch.randn(size, width, generator=generator)
    shared = torch.nn.functional.normalize(torch.randn(width, generator=generator), dim=0)
    rare = torch.arange(size) >= size // 4
    rows[rare] = 0.3 * rows[rare] + 40 * shared
    fresh_gpt2.hf.lm_head.weight = torch.nn.Parameter(rows, requires_grad=False)
    meaning = torch.nn.functional.normalize(rows[7] - (rows[7] @ shared) * shared, dim=0)
    # A vector that means token 7 and lies a little along what the rare rows share, as every vector does.
    vector = meaning + 0.5 * shared
    assert rare[top_tokens(fresh_gpt2, vector, top=10).ids].all()
    common = frozenset(range(size // 4))
    for projection in (Projection(cosine=True, seen=common), Projection(seen=common)):
        tokens = top_tokens(fresh_gpt2, vector, top=10, projection=projection)
        assert not rare[tokens.ids].any()
        assert int(tokens.ids[0, 0]) == 7
    centred = rows - rows.mean(dim=0)
    assert int((torch.nn.functional.normalize(centred, dim=1) @ meaning).argmax()) == 7
    assert top_tokens(fresh_gpt2, meaning, top=1, projection=Projection(cosine=True)).ids.tolist() == [[7]]


def test_only_the_seen_tokens_are_listed(gpt2) -> None:
    from interp.neurons.projection import Projection, seen_tokens
    from interp.neurons.vocabulary import top_tokens

    seen = seen_tokens(gpt2, ["the river sings", "a stone"])
    assert seen == set(gpt2.tokenizer("the river sings")["input_ids"]) | set(gpt2.tokenizer("a stone")["input_ids"])
    vector = torch.randn(gpt2.d_model, generator=torch.Generator().manual_seed(3))
    tokens = top_tokens(gpt2, vector, top=len(seen), projection=Projection(seen=seen))
    scores = {token: float(gpt2.hf.lm_head.weight[token] @ vector) for token in seen}
    assert tokens.ids[0].tolist() == sorted(seen, key=lambda token: -scores[token])
    with pytest.raises(UserError, match=f"ask for 1 to {len(seen)}"):
        top_tokens(gpt2, vector, top=len(seen) + 1, projection=Projection(seen=seen))
    for texts in ([], "the river"):
        with pytest.raises(UserError, match="no reference texts"):
            seen_tokens(gpt2, texts)


def test_a_small_vocabulary_is_read_whole_and_a_large_one_by_the_cosine_with_its_common_tokens(gpt2, monkeypatch) -> None:
    from interp.data.texts import passages
    from interp.neurons import projection

    assert projection.projection_for(gpt2) == projection.projection_for(gpt2, "dot") == projection.DOT
    assert projection.projection_for(gpt2, "cosine") == projection.Projection(cosine=True)
    common = projection.projection_for(gpt2, "common")
    assert common.cosine
    assert common.seen is not None
    assert common.seen >= projection.seen_tokens(gpt2, [item.text for item in passages()])
    assert not gpt2.tokenizer.all_special_ids or not common.seen & set(gpt2.tokenizer.all_special_ids)
    assert str(common) == f"cosine with the centred unembedding, {len(common.seen):,} common tokens only"
    monkeypatch.setattr(projection, "SMALL_VOCABULARY", 10)
    assert projection.projection_for(gpt2) == common
    with pytest.raises(UserError, match="auto, dot, cosine, common"):
        projection.projection_for(gpt2, "readable")


def test_the_index_of_a_projection_holds_what_top_tokens_gives_and_is_stored_apart(planted, tmp_path) -> None:
    from interp.neurons.projection import Projection
    from interp.neurons.vocabulary import build_index, search, top_tokens

    model = planted.model
    size = len(model.tokenizer)
    projection = Projection(cosine=True, seen=frozenset(range(0, size, 2)))
    plain = build_index(model, top=5, cache=tmp_path)
    index = build_index(model, top=5, projection=projection, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    for layer in range(model.n_layers):
        expected = top_tokens(model, model.value_vectors(layer), top=5, projection=projection)
        assert (index.ids[layer * model.d_mlp : (layer + 1) * model.d_mlp] == expected.ids.numpy()).all()
    assert (build_index(model, top=5, projection=projection, cache=tmp_path).ids == index.ids).all()
    assert (build_index(model, top=5, cache=tmp_path).ids == plain.ids).all()
    odd = next(word for token, word in enumerate(index.words) if token % 2 and word.strip().isalpha() and len(word) > 5)
    if not any(text.startswith(odd.strip().lower()) for text in index.plain[::2]):
        with pytest.raises(UserError, match="is not among the"):
            search(index, odd)
