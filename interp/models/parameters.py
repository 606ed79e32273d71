"""The table of kinds and groups of parameters, by their names in GPT-2, in Llama-like models and in BERT."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ParameterKind:
    """A kind of parameter: its name, the group that it belongs to, and the modules that have it."""

    name: str
    group: str
    modules: tuple[str, ...]


# The first that matches decides.
PARAMETERS = (
    ParameterKind("embedding", "embedding", ("wte", "embed_tokens", "lm_head", "word_embeddings", "token_type_embeddings")),
    ParameterKind("position", "embedding", ("wpe", "position_embeddings")),
    ParameterKind("attention qkv", "attention", ("attn.c_attn", "q_proj", "k_proj", "v_proj", "self.query", "self.key", "self.value")),
    ParameterKind("attention out", "attention", ("attn.c_proj", "o_proj", "attention.output.dense")),
    ParameterKind("mlp key", "mlp", ("mlp.c_fc", "gate_proj", "intermediate.dense")),
    ParameterKind("mlp up", "mlp", ("up_proj",)),
    ParameterKind("mlp value", "mlp", ("mlp.c_proj", "down_proj", "output.dense")),
)
# The names of `parameter_kind`, in the order in which tables show them.
PARAMETER_KINDS = (*(kind.name for kind in PARAMETERS), "norm", "bias")
OTHER = ParameterKind("other", "other", ())


def parameter_kind(name: str) -> str:
    """The kind of a parameter: `mlp key` and so on, `norm` with its biases, `bias` for every other bias, or `other`."""
    kind = _kind(name)
    return "bias" if kind.name != "norm" and _parts(name)[1] == "bias" else kind.name


def parameter_group(name: str) -> str:
    """The group of a parameter, its bias with it: `embedding`, `attention`, `mlp`, `norm` or `other`."""
    return _kind(name).group


def parameter_layer(name: str) -> int:
    """The layer of a parameter, -1 outside the blocks."""
    return next((int(part) for part in name.split(".") if part.isdecimal()), -1)


def _kind(name: str) -> ParameterKind:
    # Anywhere in the path and not only at its end, since a LoRA layer has modules below the one that it adapts.
    module = f".{_parts(name)[0]}"
    kind_of_module = next((kind for kind in PARAMETERS if any(f".{part}." in f"{module}." for part in kind.modules)), None)
    if kind_of_module is not None:
        return kind_of_module
    leaf = _parts(module)[1].lower()
    return ParameterKind("norm", "norm", ()) if "norm" in leaf or leaf in {"ln_1", "ln_2", "ln_f"} else OTHER


def _parts(path: str) -> tuple[str, str]:
    """A module's path and the last name in it."""
    module, _, leaf = path.rpartition(".")
    return module, leaf
