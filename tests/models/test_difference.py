"""A tuned model stored as its difference from the base: the same weights to the last bit, and no others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from interp import ModelPair, UserError, load_model
from interp.models.difference import NOTE, WEIGHTS, take_difference
from training.checkpoint import save_as_difference

CHANGE = 1e-4


@pytest.fixture(params=["gpt2", "llama"])
def sides(request: pytest.FixtureRequest, make_folder: Callable[..., Path], tmp_path: Path) -> tuple[Path, torch.nn.Module]:
    """A base that is stored in bfloat16, and a model tuned from it by changes far below what bfloat16 holds of a weight."""
    base = shutil.copytree(make_folder(request.param), tmp_path / "base")
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(base)
    tuned = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    noise = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "norm" not in name and "ln_" not in name:
                parameter.add_(CHANGE * torch.randn(parameter.shape, generator=noise))
    return base, tuned


@pytest.fixture
def written(sides: tuple[Path, torch.nn.Module], tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    save_as_difference(tmp_path / "tuned", sides[1], str(sides[0]), tokenizer)
    return tmp_path / "tuned"


@pytest.mark.oracle
def test_what_is_loaded_is_what_was_written_to_the_last_bit(
    sides: tuple[Path, torch.nn.Module], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    base, tuned = sides
    wanted = {name: parameter.detach().clone() for name, parameter in tuned.named_parameters()}
    save_as_difference(tmp_path / "tuned", tuned, str(base), tokenizer)
    pair = ModelPair.load(base, tmp_path / "tuned")
    first, second = dict(pair.base.hf.named_parameters()), dict(pair.tuned.hf.named_parameters())
    assert second.keys() == wanted.keys()
    for name, parameter in tuned.named_parameters():
        assert torch.equal(second[name], parameter), name
        change, asked = second[name] - first[name], wanted[name] - first[name]
        # A bfloat16 number is off by at most 2^-8 of itself, and each sum by half of its last place.
        assert ((change - asked).abs() <= asked.abs() / 256 + first[name].abs() * 2**-23).all(), name
    changed = [name for name in first if not torch.equal(first[name], second[name])]
    assert len(changed) > len(first) / 2
    assert set(load_file(tmp_path / "tuned" / WEIGHTS)) == set(changed)
    # A copy in bfloat16 would have lost most of it.
    lost = [float((wanted[name].bfloat16().float() - first[name] != 0).float().mean()) for name in changed]
    assert sum(lost) / len(lost) < 0.5


def test_the_folder_is_small_and_says_what_it_lies_over(written: Path, sides: tuple[Path, torch.nn.Module]) -> None:
    assert {"config.json", "tokenizer.json", NOTE, WEIGHTS} <= {file.name for file in written.iterdir()}
    single = sum(parameter.numel() for parameter in sides[1].parameters()) * 4
    assert (written / WEIGHTS).stat().st_size < 0.6 * single
    manifest = ModelPair.load(sides[0], written).manifest()["tuned"]
    assert manifest["adapter_base"] == str(sides[0])
    assert manifest["stored_dtype"] == ["BF16"]
    assert list(manifest["files"]) == [WEIGHTS]


def test_a_pair_that_is_moved_together_finds_its_base(written: Path, tmp_path: Path) -> None:
    expected = load_model(written).digest
    elsewhere = shutil.move(written.parent, tmp_path.parent / f"{tmp_path.name}-moved")
    assert load_model(Path(elsewhere) / "tuned").digest == expected
    (Path(elsewhere) / "base").rename(Path(elsewhere) / "first")
    with pytest.raises(UserError, match=r"\.\./base"):
        load_model(Path(elsewhere) / "tuned")
    assert load_model(Path(elsewhere) / "tuned", base=Path(elsewhere) / "first").digest == expected


def test_another_precision_is_a_rounding_of_the_whole(written: Path) -> None:
    whole, half = load_model(written), load_model(written, dtype=torch.bfloat16)
    for first, second in zip(whole.hf.parameters(), half.hf.parameters(), strict=True):
        assert torch.equal(first.bfloat16(), second)


def test_a_model_that_was_not_tuned_is_its_base(gpt2_folder: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    same = AutoModelForCausalLM.from_pretrained(gpt2_folder, dtype=torch.float32)
    save_as_difference(tmp_path / "tuned", same, str(gpt2_folder), tokenizer)
    pair = ModelPair.load(gpt2_folder, tmp_path / "tuned")
    assert pair.base.digest == pair.tuned.digest


def test_a_difference_over_another_base_is_refused(written: Path, make_folder: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r"taken from another base than .*give the base that it was written with"):
        load_model(written, base=make_folder("gpt2", seed=8))


def spoil_weights(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Path], None]:
    return lambda folder: save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)


def cut(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100])


SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "one number less": (spoil_weights(lambda t: {**t, min(t): torch.zeros_like(t[min(t)])}), "does not give the weights"),
    "a change missing": (spoil_weights(lambda t: {key: t[key] for key in sorted(t)[1:]}), "does not give the weights"),
    "a foreign name": (spoil_weights(lambda t: {**t, "elsewhere": t[min(t)].clone()}), r"changes elsewhere .*no such parameter"),
    "another shape": (spoil_weights(lambda t: {**t, min(t): t[min(t)].flatten()[1:].clone()}), r"of shape \(\d+,\), the base has"),
    "not finite": (spoil_weights(lambda t: {**t, min(t): t[min(t)] / 0}), "does not give the weights"),
    "cut off": (cut, "corrupt or truncated"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), f"no {WEIGHTS}"),
    "no JSON": (lambda folder: (folder / NOTE).write_text("{"), "not readable JSON"),
    "another note": (lambda folder: (folder / NOTE).write_text(json.dumps({"format": "mine"})), "no note of a difference"),
    "no base": (lambda folder: (folder / NOTE).write_text(json.dumps({"format": "bypass-difference"})), "no note of a difference"),
}


@pytest.mark.parametrize("sides", ["gpt2"], indirect=True)
@pytest.mark.parametrize("fault", SPOILED)
def test_a_spoiled_difference_is_an_error_that_says_how_to_mend_it(fault: str, written: Path, sides: tuple[Path, object]) -> None:
    spoil, message = SPOILED[fault]
    spoil(written)
    with pytest.raises(UserError, match=message) as caught:
        ModelPair.load(sides[0], written)
    assert str(written) in str(caught.value)
    assert "Fix:" in str(caught.value)


def test_it_cannot_be_spread_over_devices(written: Path) -> None:
    with pytest.raises(UserError, match="cannot be spread over devices"):
        load_model(written, device_map="auto")


def test_weights_that_cannot_be_subtracted_are_refused(gpt2_folder: Path, llama_folder: Path) -> None:
    first, half, other = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        for folder, dtype in ((gpt2_folder, torch.float32), (gpt2_folder, torch.bfloat16), (llama_folder, torch.float32))
    )
    with pytest.raises(UserError, match="different names or shapes"):
        take_difference(first, other)
    for pair in ((first, half), (half, first)):
        with pytest.raises(UserError, match="in float32"):
            take_difference(*pair)
