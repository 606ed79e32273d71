"""GGUF files, as llama.cpp and its relatives write them: dequantised once into a folder of safetensors that loads as any other.

A quantised weight is a rounded one, and what was rounded away is not in the file. So the folder carries a note of how its
numbers were stored, which manifests repeat: results on it are results on the dequantised model.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig, modeling_gguf_pytorch_utils

from interp.errors import UserError
from interp.files import cache_folder, read_json, replacing
from interp.models.architectures import check_model_type
from interp.models.libraries import CHECKED, listening, quiet

NOTE, FORMAT = "gguf.json", "bypass-gguf-1"
MAGIC = b"GGUF"
# Types of a tensor that are plain numbers; every other type is a quantisation.
PLAIN = frozenset({"F64", "F32", "F16", "BF16"})
FAULTS = (OSError, ValueError, KeyError, IndexError, RuntimeError, TypeError, AttributeError, OverflowError, SafetensorError)


def is_gguf(path: Path) -> bool:
    """Whether a path is a GGUF file, by its ending or its first bytes."""
    if not path.is_file():
        return False
    if path.suffix.lower() == ".gguf":
        return True
    with path.open("rb") as stream:
        return stream.read(4) == MAGIC


def convert_gguf(file: str | Path, out: str | Path) -> Path:
    """Write a GGUF file as a folder of float32 safetensors with configuration, tokenizer, chat template and a note of its quantisation.

    The weights are those that transformers reads from the file, to the last bit. The note (`gguf.json`) has the file's name and
    hash, how many tensors are stored in which type, and the bits per weight.

    Args:
        out: a folder that does not exist yet; it is written as a whole or not at all.

    Raises:
        UserError: the file is missing, damaged, in several parts, of an architecture that `load_model` does not read, or the package
            gguf is not installed; or `out` exists.
    """
    source, target = Path(file), Path(out)
    if target.exists():
        raise UserError(f"{target} exists already", "remove it, or name another folder")
    note = describe_gguf(source)
    where = {"gguf_file": source.name, "local_files_only": True}
    try:
        with listening(str(source), checked=CHECKED), _without_bar():
            config = AutoConfig.from_pretrained(source.parent, **where)
            check_model_type(config.model_type, str(source))
            # The reader of some architectures (GPT-2) takes vocabulary and context of the best-known model in place of the file's.
            config.vocab_size, config.max_position_embeddings = note["vocabulary"], note["context"]
            hf, report = AutoModelForCausalLM.from_pretrained(
                source.parent, **where, config=config, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True,
                quantization_config=GgufConfig(dequantize=True),
            )  # fmt: skip
            tokenizer = AutoTokenizer.from_pretrained(source.parent, **where)
    except UserError:
        raise
    except FAULTS as error:
        raise UserError(f"{source} could not be read as GGUF ({_first_line(error)})", "copy or download it again") from error
    absent = sorted({*report["missing_keys"], *(str(item[0]) for item in report["mismatched_keys"])})
    surplus = sorted(report["unexpected_keys"])
    if absent or surplus:
        problem = f"{source} does not hold the tensors of its architecture: {len(absent)} are missing, {len(surplus)} foreign"
        raise UserError(f"{problem}, first {[*absent, *surplus][0]}", "take the file from another source, or the original model")
    # The weights are plain numbers now, and a model that is marked as quantised refuses to be written.
    hf.config.__dict__.pop("quantization_config", None)
    hf.is_quantized, hf.hf_quantizer = False, None
    with quiet(), replacing(target, shared=True) as temporary:
        hf.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        (temporary / NOTE).write_text(json.dumps(note, indent=1), encoding="utf-8")
    return target


def describe_gguf(file: Path) -> dict[str, Any]:
    """The facts of a GGUF file: name, hash, architecture, number of tensors by type, bits per weight.

    Raises `UserError` for a file that is missing or no GGUF file, is truncated, or is one of several parts, and where the package
    gguf is not installed.
    """
    if not file.is_file():
        raise UserError(f"there is no file {file}", "check the path")
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise UserError(f"reading {file.name} needs the package gguf", "pip install 'bypass-workbench[gguf]'") from error
    try:
        reader = GGUFReader(file)
        architecture = str(reader.fields["general.architecture"].contents())
        parts = reader.fields.get("split.count")
        count = int(parts.contents()) if parts is not None else 1
        name = reader.fields.get("general.name")
        title = str(name.contents()) if name is not None else file.stem
        types = Counter(tensor.tensor_type.name for tensor in reader.tensors)
        context = int(reader.fields[f"{architecture}.context_length"].contents())
        vocabulary = next(int(tensor.shape[-1]) for tensor in reader.tensors if tensor.name == "token_embd.weight")
        weights, stored = (sum(int(getattr(tensor, key)) for tensor in reader.tensors) for key in ("n_elements", "n_bytes"))
    except StopIteration as error:
        raise UserError(f"{file} holds no embedding of tokens", "take the file of a whole language model") from error
    except FAULTS as error:
        raise UserError(f"{file} is no GGUF file, or is truncated ({_first_line(error)})", "copy or download it again") from error
    if count > 1:
        raise UserError(f"{file} is one of {count} parts", "merge them first: llama-gguf-split --merge FIRST-PART WHOLE.gguf")
    return {
        "format": FORMAT, "file": file.name, "sha256": _sha256(file), "name": title, "architecture": architecture,
        "vocabulary": vocabulary, "context": context,
        "tensors": dict(sorted(types.items())), "quantised": sorted(set(types) - PLAIN), "bits_per_weight": round(8 * stored / weights, 3),
    }  # fmt: skip


def cached_gguf(file: Path) -> Path:
    """The folder in the cache with this file's weights, converted at the first call; the file's content decides, not its name.

    Raises `UserError` as `convert_gguf`, and where no cache folder can be written.
    """
    cache = cache_folder()
    if cache is None:
        raise UserError(
            f"{file} has to be converted, and no cache folder can be written", f"bypass convert {file} --out DIR, and load that"
        )
    # Another version of transformers may read the same file in another way.
    target = cache / "gguf" / f"{_sha256(file)[:24]}-{transformers.__version__}"
    if not (target / NOTE).is_file():
        convert_gguf(file, target)
    return target


def gguf_note(folder: Path) -> dict[str, Any] | None:
    """The note of a folder that was converted from a GGUF file, or None for any other folder."""
    return read_json(folder / NOTE) if (folder / NOTE).is_file() else None


@contextmanager
def _without_bar() -> Iterator[None]:
    """A context in which transformers' reader of GGUF shows no bar of its own, which no setting of its logging turns off."""
    bar = modeling_gguf_pytorch_utils.tqdm
    modeling_gguf_pytorch_utils.tqdm = partial(bar, disable=True)
    try:
        yield
    finally:
        modeling_gguf_pytorch_utils.tqdm = bar


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
