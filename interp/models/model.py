"""`Model`: a language model with hooks at every site, and its raw weights (no folding, no centring) by meaning."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.initialization import no_init_weights

from interp.data.lexicon import mask
from interp.errors import UserError
from interp.models.architectures import Architecture, architecture_of
from interp.models.checkpoints import Checkpoint
from interp.models.converters import converter
from interp.models.hooks import install
from interp.models.libraries import BUILDING
from interp.models.offloading import checksums, parameter_values, weights_digest
from interp.models.sites import KINDS, Family, Site, site_kind
from interp.models.tokens import adds_bos, end_tokens, uncut_rows
from interp.models.tying import is_tied
from interp.models.views import View, view_of


@dataclass(frozen=True, eq=False)
class Model:
    """A language model with hooks at every site, and its weights by meaning.

    Use `capture`, `editing` and `generate` on it; `hf` is the plain Hugging Face model for anything else. Wrapping a model that
    the caller already holds installs hooks in it and leaves its gradients and its mode as they are (`freeze` sets both). `bos` says
    whether texts begin with the BOS token; None for as the tokenizer has it by default (`interp.models.tokens.adds_bos`).
    """

    hf: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    checkpoint: Checkpoint | None = None
    bos: bool | None = None
    architecture: Architecture = field(init=False)

    def __post_init__(self) -> None:
        if self.bos and self.tokenizer.bos_token_id is None:
            raise UserError(f"texts were to begin with a BOS token, but the tokenizer of {self.name} has none", "leave it off")
        object.__setattr__(self, "architecture", architecture_of(self.hf, self.name))
        install(self.hf, self.architecture, {name: self.view(name) for name in self.architecture.taps})

    def __repr__(self) -> str:
        kind = self.hf.config.model_type
        return f"Model({self.name}: {kind}, {self.n_layers} layers, d_model {self.d_model}, d_mlp {self.d_mlp}, {self.dtype})"

    @property
    def family(self) -> Family:
        """The kind of MLP: `gelu`, or `glu` for a gated one."""
        return self.architecture.family

    @property
    def n_layers(self) -> int:
        """The number of layers."""
        return int(self.hf.config.num_hidden_layers)

    @property
    def n_heads(self) -> int:
        """The number of attention heads of a layer."""
        return int(self.hf.config.num_attention_heads)

    @property
    def n_kv_heads(self) -> int:
        """The number of heads of keys and values of a layer: fewer than `n_heads` where queries are grouped."""
        return int(getattr(self.hf.config, "num_key_value_heads", None) or self.n_heads)

    @property
    def d_head(self) -> int:
        """The width of one attention head."""
        return self.d_attention // self.n_heads

    @property
    def d_model(self) -> int:
        """The width of the residual stream."""
        return int(self.hf.config.hidden_size)

    @property
    def d_vocab(self) -> int:
        """The number of rows of the unembedding: the vocabulary as the model has it."""
        return int(self.hf.get_output_embeddings().weight.shape[0])

    @cached_property
    def d_mlp(self) -> int:
        """The number of neurons of a layer."""
        return int(self.part(0, self.architecture.value).weight.shape[0 if self.architecture.transposed else 1])

    @cached_property
    def d_attention(self) -> int:
        """Heads times the width of a head: the width of the input of the output projection."""
        return int(self.part(0, self.architecture.output).weight.shape[0 if self.architecture.transposed else 1])

    @property
    def context(self) -> int:
        """The longest sequence that the model reads, in tokens."""
        return int(self.hf.config.max_position_embeddings)

    @property
    def device(self) -> torch.device:
        """The device of the embedding, to which token ids have to be moved; with `device_map`, layers may be on others."""
        device = next(self.hf.parameters()).device
        if device.type != "meta":
            return device
        hook = getattr(self.hf, "_hf_hook", None)
        entry = next((part.execution_device for part in getattr(hook, "hooks", [hook]) if hasattr(part, "execution_device")), "cpu")
        return torch.device(entry)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return next(self.hf.parameters()).dtype

    def width(self, site: str) -> int:
        """The number of values of a site, named without its layer, per position."""
        return math.prod(self.shape(site))

    def shape(self, site: str) -> tuple[int, ...]:
        """The sizes of a site's axes behind batch and position: `(d_model,)`, or `(heads, d_head)` for heads."""
        axis = site_kind(site).axis
        if axis in ("head", "kv_head"):
            return (self.n_heads if axis == "head" else self.n_kv_heads), self.d_head
        if axis == "pattern":
            raise UserError("a pattern is as wide as the text is long", "name a site whose width belongs to the model, such as z")
        return ({"d_model": self.d_model, "d_mlp": self.d_mlp, "vocab": self.d_vocab}[axis],)

    def view(self, site: str) -> View:
        """The view of a site, named without its layer, in the tensor that passes its module."""
        return view_of(site, self.architecture, self.n_heads, self.n_kv_heads, self.d_head)

    def part(self, layer: int, path: str) -> Any:
        """A module of one layer, by its path below the block; raises `UserError` for a layer that does not exist."""
        if not 0 <= layer < self.n_layers:
            raise UserError(f"layer {layer} does not exist: {self.name} has {self.n_layers} layers", "count layers from 0")
        return self.hf.get_submodule(f"{self.architecture.blocks}.{layer}.{path}")

    def projection(self, layer: int, path: str) -> Float[Tensor, "d_in d_out"]:
        """The matrix of a projection of one layer, one row per input: a view of the weight, however it is stored."""
        weight: Tensor = parameter_values(self.part(layer, path), "weight")
        return weight if self.architecture.transposed else weight.T

    def projection_bias(self, layer: int, path: str) -> Float[Tensor, " d_out"] | None:
        """The bias of a projection of one layer, or None where it has none."""
        return parameter_values(self.part(layer, path), "bias")

    def check_neurons(self, neurons: Sequence[tuple[int, int]]) -> None:
        """Raise `UserError` unless there is at least one neuron, and each (layer, index) exists."""
        if not len(neurons):
            raise UserError("no neurons were given", "name at least one (layer, index) pair")
        for layer, index in neurons:
            if not (0 <= layer < self.n_layers and 0 <= index < self.d_mlp):
                problem = f"neuron {layer}.{index} does not exist: the model has {self.n_layers} layers of {self.d_mlp} neurons"
                raise UserError(problem, "count layers and neurons from 0")

    def key_vectors(self, layer: int) -> Float[Tensor, "d_mlp d_model"]:
        """The key vectors of a layer, one row per neuron: `activation_i = f(x . k_i + b_i)`; for GLU those of the gate."""
        return self.projection(layer, self.architecture.key).T

    def up_vectors(self, layer: int) -> Float[Tensor, "d_mlp d_model"]:
        """The key vectors of the linear part of a GLU."""
        if self.architecture.up is None:
            raise UserError(f"{self.name} has no gated MLP", "use key_vectors")
        return self.projection(layer, self.architecture.up).T

    def key_biases(self, layer: int) -> Float[Tensor, " d_mlp"]:
        """The bias added to each key's product; zeros where the architecture has none."""
        return self._bias(layer, self.architecture.key, self.d_mlp)

    def value_vectors(self, layer: int) -> Float[Tensor, "d_mlp d_model"]:
        """The value vectors of a layer, one row per neuron: what it writes to the residual stream per unit of activation.

        Where a norm follows the MLP (Gemma 2 and 3), `interp.models.weights.written_values` are what reaches the stream.
        """
        return self.projection(layer, self.architecture.value)

    def value_bias(self, layer: int) -> Float[Tensor, " d_model"]:
        """The bias of the MLP's output; zeros where the architecture has none."""
        return self._bias(layer, self.architecture.value, self.d_model)

    def _bias(self, layer: int, path: str, width: int) -> Tensor:
        bias = self.projection_bias(layer, path)
        return bias if bias is not None else torch.zeros(width, device=self.device, dtype=self.dtype)

    @property
    def unembedding(self) -> Float[Tensor, "vocab d_model"]:
        """The unembedding matrix, one row per token."""
        return parameter_values(self.hf.get_output_embeddings(), "weight")

    @property
    def final_norm(self) -> nn.Module:
        """The norm before the unembedding."""
        return self.hf.get_submodule(self.architecture.final_norm)

    @property
    def final_gain(self) -> Float[Tensor, " d_model"]:
        """The gain of the final norm, per coordinate."""
        gain: Tensor = parameter_values(self.final_norm, "weight")
        return gain + self.architecture.norm_offset

    def token(self, word: str) -> int:
        """The token of a word that is one token with a space before it, or without; raises `UserError` if it is several or empty."""
        if not word.strip():
            raise UserError("the word to follow is empty", "give a word, such as river")
        spellings = [word] if word[0].isspace() else [f" {word}", word]
        for spelling in spellings:
            ids = self.tokenizer(spelling, add_special_tokens=False)["input_ids"]
            if len(ids) == 1:
                return int(ids[0])
        pieces = len(self.tokenizer(spellings[0], add_special_tokens=False)["input_ids"])
        raise UserError(f"{mask(word)!r} is {pieces} tokens for {self.name}, and one is needed", "give a commoner or shorter word")

    def str_tokens(self, text: str) -> list[str]:
        """The text of each token of a text, in order, with the BOS token where the model reads one."""
        return [self.tokenizer.decode([token]) for token in uncut_rows(self, [text])[0]]

    def sites(self) -> list[str]:
        """Every site of this model, in the order in which a forward computes them."""
        each = [kind.name for kind in KINDS.values() if kind.per_layer and kind.name in self.architecture.taps]
        return [
            *(str(Site(name, layer)) for layer in range(self.n_layers) for name in each),
            *(kind.name for kind in KINDS.values() if not kind.per_layer),
        ]

    @property
    def digest(self) -> str:
        """A hash of every weight as it is now, by which results and indexes of this model are cached.

        It is computed again after a weight has changed in any way, and at every call while any of them requires gradients.
        """
        versions = checksums(self.hf)
        trained = any(parameter.requires_grad for parameter in self.hf.parameters())
        cached: tuple[Any, str] | None = self.__dict__.get("_digest")
        if cached is None or trained or cached[0] != versions:
            cached = versions, weights_digest(self.hf)
            self.__dict__["_digest"] = cached
        return cached[1]

    def plain_copy(self) -> PreTrainedModel:
        """The same weights in a new Hugging Face model without hooks (a deep copy would share this model's edits).

        Raises `UserError` where some weights are not in memory (`device_map` with offloading).
        """
        if any(parameter.is_meta for parameter in self.hf.parameters()):
            problem = f"some weights of {self.name} are offloaded, so it cannot be copied"
            raise UserError(problem, "load it on one device, without device_map")
        # The configuration is copied too, because a user of the copy may switch its attention to another implementation.
        config = deepcopy(self.hf.config)
        # It may say that the unembedding is the embedding where the weights are not.
        config.tie_word_embeddings = is_tied(self.hf)
        with BUILDING, no_init_weights():
            copy = type(self.hf)(config)
        # The initialisation that was skipped would have tied them.
        copy.tie_weights()
        copy.load_state_dict(self.hf.state_dict())
        copy.generation_config = deepcopy(self.hf.generation_config)
        return copy.to(self.device, self.dtype).eval()

    def to_transformer_lens(self) -> Any:
        """A TransformerLens `TransformerBridge` on a copy of the weights, raw; see `interp.adapters` for the names of sites."""
        return converter("transformer_lens")(self)

    def to_nnsight(self) -> Any:
        """An nnsight `TransformersModel` on a copy of the weights; see `interp.adapters` for its names of sites."""
        return converter("nnsight")(self)

    def manifest(self) -> dict[str, Any]:
        """The model's origin, sizes, dtype and digest, as JSON."""
        origin = self.checkpoint.describe() if self.checkpoint else {"path": None}
        return {
            "name": self.name, **origin, "model_type": self.hf.config.model_type, "layers": self.n_layers,
            "d_model": self.d_model, "d_mlp": self.d_mlp, "heads": self.n_heads, "vocabulary": self.d_vocab,
            "parameters": sum(p.numel() for p in self.hf.parameters()), "bos": adds_bos(self), "end_tokens": list(end_tokens(self)),
            "dtype": str(self.dtype).removeprefix("torch."), "digest": self.digest,
        }  # fmt: skip


Neuron = tuple[int, int]


def by_layer(neurons: Iterable[Neuron]) -> dict[int, list[int]]:
    """The indices of neurons by layer: layers in the order in which they first appear, and the indices of each in theirs."""
    grouped: dict[int, list[int]] = {}
    for layer, index in neurons:
        grouped.setdefault(layer, []).append(index)
    return grouped
