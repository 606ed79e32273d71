"""A device `far` for machines without a GPU: its tensors say that they are elsewhere and refuse to be mixed with the processor's.

Each tensor of it wraps one of the processor, on which the arithmetic is done, so numbers can be compared. What fails here would
fail on a GPU: operations on tensors of both devices (numbers and indices from the processor are allowed, as on a GPU), `numpy()`
without `cpu()`, and random numbers drawn there with a generator of the processor. What a GPU adds beyond that (other kernels and
their rounding, memory) is not seen here.

    python -m tests.invented_device FOLDER [EXPERIMENT ...]

runs the commands (on the pair in FOLDER) and the experiments that are named (on the planted pair), on the processor and then on `far`,
and prints what came of both as JSON. The device is registered for the whole process, which is why this is one of its own.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend as register
from transformers import PreTrainedModel

COPY = torch.ops.aten.copy_
INDEXED = (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_)
TEXTS = "--prompts prompts.txt --passages own.jsonl --scorer lexicon"
COMMANDS = {
    "generate": "generate both river a --edit subtract:resid_post.1:probe:2 --new-tokens 4",
    "sampled": "generate base river --edit scale_keys:1.7:3 --new-tokens 4 --temperature 0.8 --top-k 9 --top-p 0.9",
    "evaluate": f"evaluate base {TEXTS} --new-tokens 4 --edit project_out:resid_post.1:probe",
    "sweep": f"sweep base {TEXTS} --new-tokens 3 --edit set:mlp_post.1:all:0 --strengths 1",
    "vectors": "vectors --top 3 --scorer lexicon",
    "difference": "vectors --top 3 --like difference --scorer lexicon",
    "search": "vectors --search river",
    "neuron": "vectors --neuron 1.7 --examples prompts.txt",
    "lens": "lens river --token river --edit subtract:resid_post.1:probe:2",
    "attribute": "attribute both river --token river --by neuron",
    "patch": "patch river --token river",
    "patch units": "patch river --metric probe --site mlp_post --units 0,3",
    "patch heads": "patch river --corrupted stone --tokens river stone --site z",
    "gradient": "patch river --token river --method gradient --check",
    "integrated": "patch river --token river --method integrated",
    "paths": "patch river --token river --paths embed,head.0.3 mlp.2,head.2.1.q,logits",
}


class Far(torch.Tensor):
    """A tensor of the invented device; `held` is its twin on the processor."""

    held: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Far:
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device="far:0"
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})

    def numpy(self, *given: Any, **named: Any) -> Any:
        raise TypeError("can't convert a tensor of device far to numpy: use cpu() first")

    # A number that is read may come from any device. Torch reads these in C++, past a device that has no memory of its own.
    def item(self) -> Any:
        return self.held.item()

    def tolist(self) -> Any:
        return self.held.tolist()

    def __float__(self) -> float:
        return float(self.held)

    def __int__(self) -> int:
        return int(self.held)

    def __bool__(self) -> bool:
        return bool(self.held)

    def __index__(self) -> int:
        return self.held.__index__()

    def __format__(self, spec: str) -> str:
        return format(self.held, spec)

    def __repr__(self) -> str:
        return f"Far({self.held})"

    def __getitem__(self, at: Any) -> Any:
        return torch.Tensor.__getitem__(self, index(at))

    def __setitem__(self, at: Any, value: Any) -> None:
        torch.Tensor.__setitem__(self, index(at), value)


class Watching(TorchDispatchMode):
    """Sees what is made from nothing, or moved, as well."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation: refused where devices are mixed, done on the processor, and its result put where it belongs."""
    target = kwargs.get("device")
    far = [one for one in tensors_in((args, kwargs)) if isinstance(one, Far)]
    if not far and target is None:
        return func(*args, **kwargs)
    name = func.overloadpacket
    checked = [one for place, one in enumerate(args) if place != 1] if name in INDEXED and isinstance(args[0], Far) else (args, kwargs)
    if far and name is not COPY and any(one.dim() for one in tensors_in(checked) if not isinstance(one, Far)):
        raise RuntimeError(f"{func} was given tensors of far and of the processor")
    elsewhere = torch.device(target).type == "far" if target is not None else None
    if kwargs.get("generator") is not None and (far or elsewhere):
        raise RuntimeError(f"{func} draws on far with a generator of the processor")
    moved = {**kwargs, "device": torch.device("cpu")} if elsewhere else kwargs
    result = func(*mapped(bare, args), **mapped(bare, moved))
    if far and isinstance(args[0], Far) and result is args[0].held:
        return args[0]
    if elsewhere is None:
        elsewhere = isinstance(args[0], Far) if name is COPY else bool(far)
    return mapped(wrapped, result) if elsewhere else result


def tensors_in(value: Any) -> list[torch.Tensor]:
    """The tensors of the arguments of an operation, however they are nested."""
    found: list[torch.Tensor] = []
    _collect(value, found)
    return found


def _collect(value: Any, found: list[torch.Tensor]) -> None:
    # Called for each operation: most arguments are tensors, and most others numbers.
    if isinstance(value, torch.Tensor):
        found.append(value)
    elif isinstance(value, tuple | list):
        for one in value:
            _collect(one, found)
    elif isinstance(value, dict):
        for one in value.values():
            _collect(one, found)


def mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """torch's `tree_map`, several times as fast on what operations take and return: few tensors and numbers, hardly nested."""
    kind = type(value)
    if kind is tuple or kind is list:
        return kind(mapped(change, one) for one in value)
    if kind is dict:
        return {name: mapped(change, one) for name, one in value.items()}
    return tree_map(change, value) if isinstance(value, tuple | list | dict) else change(value)


def bare(leaf: Any) -> Any:
    return leaf.held if isinstance(leaf, Far) else leaf


def wrapped(leaf: Any) -> Any:
    return Far(leaf) if isinstance(leaf, torch.Tensor) and not isinstance(leaf, Far) else leaf


def index(at: Any) -> Any:
    """An index whose lists are tensors of the processor, which may index any device."""
    if isinstance(at, tuple):
        return tuple(map(index, at))
    return torch.tensor(at) if isinstance(at, list | range) else at


def install() -> None:
    """Make `far` a device of this process."""
    register("far")
    # These two fill memory in C++: made on the processor and moved, they are seen.
    for name in ("tensor", "as_tensor"):
        setattr(torch, name, _moved(getattr(torch, name), copy=name == "tensor"))
    plain = PreTrainedModel.to

    def tied(self: PreTrainedModel, *given: Any, **named: Any) -> PreTrainedModel:
        # To a true device a parameter moves within itself; a wrapper takes its place, and tied ones part.
        plain(self, *given, **named)
        self.tie_weights()
        return self

    PreTrainedModel.to = tied  # type: ignore[method-assign]


def _moved(make: Callable[..., torch.Tensor], copy: bool) -> Callable[..., torch.Tensor]:
    def made(data: Any, *given: Any, device: Any = None, **named: Any) -> torch.Tensor:
        if isinstance(data, Far):
            found: torch.Tensor = Far(make(data.held.clone() if copy else data.held, *given, **named))
        else:
            found = make(data, *given, **named)
        return found if device is None else found.to(device)

    return made


def check() -> None:
    """Raise where the device would let mistakes pass, or where a model is not on it."""
    from interp import ModelPair

    far, near = torch.ones(2, device="far"), torch.ones(2)
    faults: list[Callable[[], Any]] = [
        lambda: far + near, lambda: near @ far, lambda: torch.stack([near, far]), lambda: near.add_(far), lambda: far.numpy(),
        lambda: near[torch.tensor([0], device="far")], lambda: torch.rand(2, device="far", generator=torch.Generator()),
    ]  # fmt: skip
    for place, fault in enumerate(faults):
        try:
            fault()
        except (RuntimeError, TypeError):
            continue
        raise SystemExit(f"mistake {place} passed")
    parts = ModelPair.bundled(device="far").tuned.hf.parameters()
    if not (all(isinstance(part, Far) for part in parts) and (far[torch.tensor([0])] * 2).cpu().tolist() == [2.0]):
        raise SystemExit("the model is not on the device")


def watched(device: str) -> AbstractContextManager[Any]:
    """On `far`, every operation is looked at; on the processor there is nothing to see, and each look would cost more than it does."""
    return Watching() if device == "far" else nullcontext()


def hash_once() -> None:
    """Compute each model's digest once: no weight is changed here, and a look at all of them for every call is half of a command."""
    from interp import Model

    Model.digest = property(functools.cache(Model.digest.fget))  # type: ignore[method-assign, assignment, arg-type]


def commands(folder: Path) -> dict[str, dict[str, Any]]:
    """What each command prints on both devices."""
    import typer.testing

    from interp import workbench
    from interp.cli import app
    from interp.models import loading, pair

    # The parsers of all commands are made once, as in the tests (tests/conftest.py).
    typer.testing._get_command = functools.cache(typer.testing._get_command)  # type: ignore[attr-defined]

    # Each side is loaded once on each device, not once by every command.
    load = functools.cache(loading.load_model)
    for module in (loading, pair):
        module.load_model = load  # type: ignore[assignment, attr-defined]
    found: dict[str, dict[str, Any]] = {name: {} for name in COMMANDS}
    runner = typer.testing.CliRunner()
    for device in ("cpu", "far"):
        workbench.chosen_device = lambda name=None, device=device: device  # type: ignore[assignment]
        for name, words in COMMANDS.items():
            with watched(device):
                result = runner.invoke(app, [*words.split(), "--pair", str(folder / "base"), str(folder / "tuned"), "--json"])
            found[name][device] = json.loads(result.stdout) if result.exit_code == 0 else f"{result.exception!r} {result.output}"
    return found


def experiments(names: list[str]) -> dict[str, dict[str, Any]]:
    """The statistics of each experiment on both devices, of the planted pair (tests/experiments/planted.py), with few prompts."""
    from interp import Model, ModelPair
    from interp.experiments.registry import find_experiments
    from interp.experiments.run import run_experiment
    from interp.results.result import plain
    from tests.experiments.planted import planted_context, planted_pair

    found: dict[str, dict[str, Any]] = {name: {} for name in names}
    for device in ("cpu", "far"):
        planted = planted_pair()
        with watched(device):
            sides = [Model(side.plain_copy().to(device), side.tokenizer, role) for role, side in planted.pair.sides.items()]
            context = planted_context(replace(planted, pair=ModelPair(*sides, "planted pair")), count=24, quick=True)
        for experiment in find_experiments(names):
            with watched(device):
                result = run_experiment(experiment, context)
            found[experiment.id][device] = plain({"statistic": result.statistic, "null": result.null})
    return found


if __name__ == "__main__":
    install()
    with watched("far"):
        check()
    hash_once()
    made = {"commands": commands(Path(sys.argv[1])), "experiments": experiments(sys.argv[2:])}
    sys.stdout.write(json.dumps(made))
