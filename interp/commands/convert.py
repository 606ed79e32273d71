"""`bypass convert`: convert a checkpoint of another tool to a folder that loads without a pickle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from interp import workbench
from interp.commands import common
from interp.errors import UserError


def convert(
    file: Annotated[
        Path, typer.Argument(help="a GGUF file; a policy.pt, .bin or .safetensors, the index of shards, their folder; or a detoxify .ckpt")
    ],
    like: Annotated[
        str | None, typer.Option(help=f"the model that a policy was tuned from, or the original of a GGUF file: {common.MODEL_HELP}")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="the folder to write [default: FILE without its ending]")] = None,
    detoxify: Annotated[
        bool, typer.Option("--detoxify", help="FILE is a checkpoint of detoxify; --like is then its base model's folder")
    ] = False,
    pair: common.Pair = None,
    as_json: common.AsJson = False,
) -> None:
    """Turn a GGUF file or a policy.pt into a folder of safetensors that every command reads, or a detoxify checkpoint into a scorer."""
    from interp.models.gguf import convert_gguf, gguf_note, is_gguf

    target = out if out is not None else file.with_suffix("")
    if target == file:
        raise UserError(f"{file} has no ending, so the folder would have its name", "name the folder with --out DIR")
    quantised = is_gguf(file)
    if not detoxify and not quantised and like is None:
        raise UserError("a policy holds weights alone", "name the model it was tuned from: --like MODEL")
    if not target.parent.is_dir():
        raise UserError(f"there is no folder {target.parent}", "make it, or name another with --out DIR")
    if not file.exists() or (detoxify and not file.is_file()):
        raise UserError(f"{file} is not a file" if file.exists() else f"there is no file {file}", "check the path")
    workbench.hush()
    rounding: dict[str, Any] | None = None
    with common.progress(None, f"converting {file.name}"):
        if detoxify:
            from interp.evaluation.detoxify import convert_detoxify

            folder = convert_detoxify(file, target, like=like)
        elif quantised:
            folder = convert_gguf(file, target)
            if like is not None:
                from interp.models.rounding import note_rounding

                rounding = note_rounding(folder, workbench.Sides(pair).source(like))
        else:
            from interp.models.convert import convert_policy

            folder = convert_policy(file, workbench.Sides(pair).source(str(like)), target)
    if as_json:
        common.print_json({"folder": str(folder), **({"rounding": rounding} if rounding is not None else {})})
        return
    common.print_line(f"written: {folder}")
    if quantised:
        note = gguf_note(folder) or {}
        stored = ", ".join(f"{count} x {kind}" for kind, count in note["tensors"].items())
        common.print_line(f"stored as {stored} ({note['bits_per_weight']} bits a weight): a dequantised model is not the original one")
    if rounding is not None:
        common.print_table(("measure", "value"), list(rounding.items()), title="against the original")
