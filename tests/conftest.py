"""Tiny models made on the fly: nothing is downloaded, nothing is stored, and no weight is zero by accident.

Freshly initialised models hide bugs: their biases are zero and their norms one, so that code which forgets a bias or a
gain still agrees. Every bias and gain here is perturbed.

torch, and the models of transformers and interp, are imported where they are used: the process that hands the tests out to the
workers reads this file too, and the workers wait for it.
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import functools
import gc
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jaxtyping
import pytest
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from xdist.scheduler import LoadFileScheduling

import interp

if TYPE_CHECKING:
    from transformers import GPT2Config, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

    from interp import Model, ModelPair
    from tests.models.families import Family

N_LAYERS, N_HEADS, D_MODEL, CONTEXT = 3, 4, 32, 64
EOS = "<|endoftext|>"
WORDS = (
    "blorp", "snarg", "wintle", "frabe", "quonk", "meldy", "drith", "yemper", "oskle", "tavid", "grent", "pluv", "hoddle", "zimbra",
    "kreth", "lomby", "fusk", "narrow", "bitter", "sunny", "river", "stone", "walks", "sings", "quick", "never", "with", "under", "the",
    "and", "a", "of",
)  # fmt: skip
TEXTS = (
    "the quick wintle sings under a river",
    "blorp and snarg",
    "never the meldy stone of drith, and a frabe walks with the oskle",
    "a quonk",
    "hoddle hoddle zimbra 🙂 café",
)

# Files that share a server and a browser.
ROOMS = ("tests/app/browser/",)
TESTS = Path(__file__).parent
# The folders whose files take tens of seconds, though none of their tests may.
LONG = {"training", "app", "experiments", "commands"}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE vocabulary of the 256 bytes, the invented words with a space before them, and an end-of-text token."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=[EOS], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    bpe.train_from_iterator([" ".join(pair) for pair in itertools.product(WORDS, repeat=2)], trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=EOS, pad_token=EOS)


def gpt2_config(**changes: Any) -> GPT2Config:
    settings: dict[str, Any] = {
        "n_layer": N_LAYERS, "n_head": N_HEADS, "n_embd": D_MODEL, "n_positions": CONTEXT, "initializer_range": 0.15,
        "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1,
    }  # fmt: skip
    return transformers.GPT2Config(**{**settings, **changes})


def glu_settings() -> dict[str, Any]:
    """Settings that GLU families share: grouped queries, an MLP that is not four times the model."""
    return {
        "hidden_size": D_MODEL, "intermediate_size": 48, "num_hidden_layers": N_LAYERS, "num_attention_heads": N_HEADS,
        "num_key_value_heads": 2, "max_position_embeddings": CONTEXT, "initializer_range": 0.15,
    }  # fmt: skip


CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "gpt2": gpt2_config,
    "llama": lambda: transformers.LlamaConfig(**glu_settings(), tie_word_embeddings=False),
    "qwen2": lambda: transformers.Qwen2Config(**glu_settings(), tie_word_embeddings=False),
    # Heads wider than the model divided by their number, as real Gemma has them.
    "gemma": lambda: transformers.GemmaConfig(**glu_settings(), head_dim=16),
}


def make_hf(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> PreTrainedModel:
    """A random model of this configuration for this vocabulary, every bias and norm perturbed."""
    import torch

    config.vocab_size = len(tokenizer)
    config.bos_token_id = config.eos_token_id = config.pad_token_id = tokenizer.eos_token_id
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        hf = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in hf.parameters():
                if parameter.dim() == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return hf.eval()


def save(hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    hf.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """No search for garbage while libraries are imported, and later ones pass over the millions of objects that these hold.

    Training and pytest itself search explicitly, and each search looked at all of them.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, and short files last: a worker that began a long one when the others are done would keep everybody
    waiting."""
    slow = {item.path for item in items if item.get_closest_marker("slow") or item.path.parent.name == "browser"}
    long = {item.path for item in items if item.path.relative_to(TESTS).parts[0] in LONG}
    items.sort(key=lambda item: (item.path not in slow, item.path not in long))


class RoomScheduling(LoadFileScheduling):
    """A file to a worker, as `--dist loadfile`, and what shares the longest preparations to one worker as a whole."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return next((room for room in ROOMS if file.startswith(room)), file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> RoomScheduling:
    return RoomScheduling(config, log)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _one_tree_of_commands() -> None:
    """The parsers of all commands, which typer makes anew for every call of one in a test, a tenth of a second each."""
    import typer.testing

    typer.testing._get_command = functools.cache(typer.testing._get_command)  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="session")
def make_folder(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`make_folder(kind, seed=0)`: a checkpoint of this kind on disk, made once per kind and seed. Copy it before breaking it."""
    made: dict[tuple[str, int], Path] = {}

    def make(kind: str, seed: int = 0) -> Path:
        if (kind, seed) not in made:
            hf = make_hf(CONFIGS[kind](), tokenizer, seed)
            made[kind, seed] = save(hf, tokenizer, tmp_path_factory.mktemp("models") / f"{kind}-{seed}")
        return made[kind, seed]

    return make


@pytest.fixture(scope="session")
def families(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Family]:
    """`families(name)`: the tiny model of one of `FAMILIES` (tests/models/families.py), made once."""
    from tests.models.families import make_family

    made: dict[str, Family] = {}

    def of(name: str) -> Family:
        if name not in made:
            made[name] = make_family(name, tokenizer, tmp_path_factory.mktemp("families") / name)
        return made[name]

    return of


@pytest.fixture(scope="session")
def gpt2_folder(make_folder: Callable[..., Path]) -> Path:
    return make_folder("gpt2")


@pytest.fixture(scope="session")
def llama_folder(make_folder: Callable[..., Path]) -> Path:
    return make_folder("llama")


@pytest.fixture(scope="session")
def tuned_folder(gpt2_folder: Path, tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny GPT-2 with a little noise on every weight: the tuned side of `pair`."""
    import torch

    hf = transformers.AutoModelForCausalLM.from_pretrained(gpt2_folder, dtype=torch.float32)
    noise = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=noise))
    return save(hf, tokenizer, tmp_path_factory.mktemp("models") / "tuned")


@pytest.fixture(scope="session")
def gpt2(gpt2_folder: Path) -> Model:
    return interp.load_model(gpt2_folder, name="gpt2")


@pytest.fixture(scope="session")
def llama(llama_folder: Path) -> Model:
    return interp.load_model(llama_folder, name="llama")


@pytest.fixture(scope="session")
def qwen2(make_folder: Callable[..., Path]) -> Model:
    return interp.load_model(make_folder("qwen2"), name="qwen2")


@pytest.fixture(scope="session")
def gemma(make_folder: Callable[..., Path]) -> Model:
    return interp.load_model(make_folder("gemma"), name="gemma")


@pytest.fixture(params=["gpt2", "llama", "qwen2", "gemma"])
def any_model(request: pytest.FixtureRequest) -> Model:
    """Each tiny model in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture(params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest) -> Model:
    """The tiny GPT-2, then the tiny Llama: one of each family of MLP."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def pair(gpt2_folder: Path, tuned_folder: Path) -> ModelPair:
    return interp.ModelPair.load(gpt2_folder, tuned_folder, name="tiny pair")


@pytest.fixture
def served(gpt2_folder: Path, tuned_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The environment of the app on the tiny pair, in an empty folder; what one test asked is not kept for the next."""
    import streamlit as st

    for name in ("BYPASS_REPORT", "BYPASS_RUNS", "BYPASS_MODELS", "BYPASS_DEMO"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BYPASS_PAIR", f"{gpt2_folder}::{tuned_folder}")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    st.cache_data.clear()


@pytest.fixture
def fresh_gpt2(gpt2_folder: Path) -> Model:
    """The tiny GPT-2 loaded anew, for a test that changes its weights."""
    return interp.load_model(gpt2_folder)


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switch the checker of annotations off, for tests of what a user meets who gives a value of the wrong type."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@dataclass(frozen=True)
class Planted:
    """A random GPT-2 in which neuron (`layer`, `index`) fires on `trigger` alone and then writes `word`."""

    model: Model
    folder: Path
    layer: int
    index: int
    word: str
    word_id: int
    trigger: str
    trigger_id: int


@pytest.fixture(scope="session")
def planted(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """The planted answer: what ranking, projection, search, capture and scaling must find.

    Embeddings are large beside positions and attention, so that the layer's input is mostly the current token; the key is
    what the layer reads at the trigger, with a bias between it and every other token's product.
    """
    import torch

    layer, index, word, trigger = 1, 77, " snarg", " wintle"
    (word_id,), (trigger_id,) = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (word, trigger))
    hf = make_hf(gpt2_config(), tokenizer, seed=3)
    noise = torch.Generator().manual_seed(5)
    with torch.no_grad():
        hf.transformer.wte.weight.copy_(torch.randn(hf.transformer.wte.weight.shape, generator=noise))
        hf.transformer.wpe.weight.mul_(0.2)
        for block in hf.transformer.h:
            block.attn.c_proj.weight.mul_(0.1)
            block.mlp.c_proj.weight.mul_(0.1)
        mlp, read = hf.transformer.h[layer].mlp, []
        hook = hf.transformer.h[layer].ln_2.register_forward_hook(lambda module, args, output: read.append(output))
        hf(torch.arange(len(tokenizer)).unsqueeze(1))
        hook.remove()
        inputs = read[0][:, 0]
        key = inputs[trigger_id] / inputs[trigger_id].norm() ** 2
        products = inputs @ key
        others = products[torch.arange(len(products)) != trigger_id].max()
        gap = float(products[trigger_id] - others)
        mlp.c_fc.weight[:, index] = 12 / gap * key
        mlp.c_fc.bias[index] = -12 / gap * float(others + gap / 2)
        mlp.c_proj.weight[index] = 3 * hf.transformer.wte.weight[word_id]
    folder = save(hf, tokenizer, tmp_path_factory.mktemp("models") / "planted")
    return Planted(interp.load_model(folder, name="planted"), folder, layer, index, word, word_id, trigger, trigger_id)
