"""The lens against Hugging Face's own hidden states and outputs, and on a planted neuron."""

from __future__ import annotations

import pytest
import torch

from interp.errors import UserError

pytestmark = pytest.mark.oracle
PROMPTS = ["the quick wintle sings", "a", "never the meldy stone of drith and a frabe walks", "blorp and snarg"]
TOKENS = [5, 17, 300, 42]


def own_probabilities(model, prompt: str, token: int) -> float:
    ids = torch.tensor([model.tokenizer(prompt, add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        return float(model.hf(ids).logits[0, -1].softmax(dim=0)[token])


def test_the_last_point_is_the_models_own_output(any_model) -> None:
    from interp.lens.logit_lens import logit_lens

    lens = logit_lens(any_model, PROMPTS, TOKENS, batch_size=3)
    assert lens.probabilities.shape == (4, 2 * any_model.n_layers + 1)
    for row, (prompt, token) in enumerate(zip(PROMPTS, TOKENS, strict=True)):
        assert float(lens.probabilities[row, -1]) == pytest.approx(own_probabilities(any_model, prompt, token), abs=1e-6)


def test_every_point_after_a_layer_is_the_norm_and_unembedding_of_its_hidden_state(any_model) -> None:
    from interp.lens.logit_lens import logit_lens

    lens = logit_lens(any_model, PROMPTS, TOKENS)
    for row, (prompt, token) in enumerate(zip(PROMPTS, TOKENS, strict=True)):
        ids = torch.tensor([any_model.tokenizer(prompt, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            states = any_model.hf(ids, output_hidden_states=True).hidden_states
            # The last hidden state of Hugging Face is already normed, so it is left to the test above.
            for layer, state in enumerate(states[:-1]):
                logits = any_model.hf.lm_head(any_model.final_norm(state[0, -1]))
                point = 2 * layer
                assert float(lens.probabilities[row, point]) == pytest.approx(float(logits.softmax(dim=0)[token]), abs=1e-6)
                assert int(lens.ranks[row, point]) == 1 + int((logits > logits[token]).sum())


def test_points_between_attention_and_mlp_lack_only_the_mlp(model) -> None:
    from interp import capture
    from interp.lens.logit_lens import logit_lens
    from interp.models.unembed import unembed

    lens = logit_lens(model, PROMPTS, TOKENS)
    for layer in range(model.n_layers):
        held = capture(model, PROMPTS, [f"resid_post.{layer}", f"mlp_out.{layer}"])
        logits = unembed(model, held[f"resid_post.{layer}"] - held[f"mlp_out.{layer}"])
        found = logits.softmax(dim=1)[torch.arange(4), torch.tensor(TOKENS)]
        torch.testing.assert_close(lens.probabilities[:, 2 * layer + 1], found, atol=1e-6, rtol=1e-4)


def test_labels_and_steps_say_which_half_layer_came_before_each_point(gpt2) -> None:
    from interp.lens.logit_lens import logit_lens

    lens = logit_lens(gpt2, PROMPTS, TOKENS)
    assert lens.labels == ("embed", "mid 0", "post 0", "mid 1", "post 1", "mid 2", "post 2")
    assert lens.steps == ("embed", "attention", "mlp", "attention", "mlp", "attention", "mlp")
    frame = lens.to_frame(draws=200)
    assert frame["layer"].tolist() == [-1, 0, 0, 1, 1, 2, 2]
    torch.testing.assert_close(torch.tensor(frame["probability"].tolist()), lens.probabilities.mean(dim=0))
    assert frame["rise"].sum() == pytest.approx(frame["probability"].iloc[-1])
    assert (frame["low"] <= frame["probability"]).all()
    assert (frame["probability"] <= frame["high"]).all()
    assert frame["median_rank"].iloc[3] == lens.ranks[:, 3].double().quantile(0.5)


def test_batches_and_padding_change_nothing(model) -> None:
    from interp.lens.logit_lens import logit_lens

    together, apart = logit_lens(model, PROMPTS, TOKENS), logit_lens(model, PROMPTS, TOKENS, batch_size=1)
    torch.testing.assert_close(together.probabilities, apart.probabilities, atol=1e-6, rtol=1e-5)


def test_the_planted_word_rises_in_the_mlp_that_holds_the_neuron_and_an_edit_takes_it_away(planted) -> None:
    from interp import Edit
    from interp.lens.logit_lens import logit_lens

    prompts, tokens = ["the quick" + planted.trigger, "a" + planted.trigger], [planted.word_id] * 2
    frame = logit_lens(planted.model, prompts, tokens).to_frame()
    best = frame.loc[frame["rise"].idxmax()]
    assert (best["step"], best["layer"]) == ("mlp", planted.layer)
    without = logit_lens(planted.model, prompts, tokens, edits=[Edit.set(f"mlp_post.{planted.layer}", 0.0, [planted.index])]).to_frame()
    assert without["probability"].iloc[-1] < 0.1 * frame["probability"].iloc[-1]
    table = logit_lens(planted.model, prompts[:1], top=3).top()
    assert len(table) == 7 * 3
    after = table[(table["label"] == f"post {planted.layer}") & (table["rank"] == 1)].iloc[0]
    assert (after["token"], after["id"]) == (planted.word, planted.word_id)
    assert after["probability"] == pytest.approx(float(logit_lens(planted.model, prompts[:1], tokens[:1]).probabilities[0, 4]), abs=1e-6)


def test_edits_at_the_final_norm_of_an_outer_block_do_not_reach_the_reading(gpt2) -> None:
    from interp import Edit, editing
    from interp.lens.logit_lens import logit_lens

    plain = logit_lens(gpt2, PROMPTS, TOKENS)
    with editing(gpt2, [Edit.scale("ln_final", 0.0)]):
        assert torch.equal(logit_lens(gpt2, PROMPTS, TOKENS).probabilities, plain.probabilities)


def test_what_cannot_be_read_is_refused(gpt2) -> None:
    from interp.lens.logit_lens import logit_lens

    for call, message in [
        (lambda: logit_lens(gpt2, [], []), "no prompts"),
        (lambda: logit_lens(gpt2, PROMPTS, [1]), "1 tokens were given for 4 prompts"),
        (lambda: logit_lens(gpt2, PROMPTS[:1], [10**6]), "does not exist"),
        (lambda: logit_lens(gpt2, [""], [1]), "is empty"),
        (lambda: logit_lens(gpt2, ["a"], top=0), "top 0"),
    ]:
        with pytest.raises(UserError, match=message):
            call()
    with pytest.raises(UserError, match=r"has no top tokens.*top=5"):
        logit_lens(gpt2, PROMPTS, TOKENS).top()


def test_the_top_tokens_are_those_of_a_plain_softmax_at_every_point_and_the_likeliest_is_followed(any_model) -> None:
    from interp import capture, logit_lens

    lens, model = logit_lens(any_model, PROMPTS, top=3), any_model
    frame = lens.top(masked=False)
    assert len(frame) == len(PROMPTS) * len(lens.labels) * 3
    states = capture(model, PROMPTS, ["resid_pre.0", "resid_mid.1", f"resid_post.{model.n_layers - 1}", "logits"])
    for label, site in (("embed", "resid_pre.0"), ("mid 1", "resid_mid.1"), (lens.labels[-1], f"resid_post.{model.n_layers - 1}")):
        chances = model.hf.get_output_embeddings()(model.final_norm(states[site])).softmax(dim=1)
        for prompt in range(len(PROMPTS)):
            rows = frame[(frame["prompt"] == prompt) & (frame["label"] == label)]
            best = chances[prompt].topk(3)
            assert rows["id"].tolist() == best.indices.tolist()
            assert rows["probability"].tolist() == pytest.approx(best.values.tolist(), rel=1e-4)
            assert rows["token"].tolist() == [model.tokenizer.decode([token]) for token in best.indices.tolist()]
    assert lens.tokens == tuple(states["logits"].argmax(dim=1).tolist())
    torch.testing.assert_close(lens.probabilities, logit_lens(model, PROMPTS, list(lens.tokens)).probabilities)
    assert set(lens.ranks[:, -1].tolist()) == {1}
