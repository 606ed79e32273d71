"""`bypass convert`: convert a checkpoint of another tool to a folder that loads without a pickle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from interp import workbench
from interp.commands import common
from interp.errors import UserError


def convert(
    file: Annotated[Path, typer.Argument(help="a policy.pt, .bin or .safetensors, the index of shards, their folder; or a detoxify .ckpt")],
    like: Annotated[str | None, typer.Option(help=f"the model that the policy was tuned from: {common.MODEL_HELP}")] = None,
    out: Annotated[Path | None, typer.Option(help="the folder to write [default: FILE without its ending]")] = None,
    detoxify: Annotated[
        bool, typer.Option("--detoxify", help="FILE is a checkpoint of detoxify; --like is then its base model's folder")
    ] = False,
    pair: common.Pair = None,
    as_json: common.AsJson = False,
) -> None:
    """Turn a policy.pt into a folder of safetensors that every command reads, or a detoxify checkpoint into a scorer."""
    target = out if out is not None else file.with_suffix("")
    if target == file:
        raise UserError(f"{file} has no ending, so the folder would have its name", "name the folder with --out DIR")
    if not detoxify and like is None:
        raise UserError("a policy holds weights alone", "name the model it was tuned from: --like MODEL")
    if not target.parent.is_dir():
        raise UserError(f"there is no folder {target.parent}", "make it, or name another with --out DIR")
    if not file.exists() or (detoxify and not file.is_file()):
        raise UserError(f"{file} is not a file" if file.exists() else f"there is no file {file}", "check the path")
    workbench.hush()
    with common.progress(None, f"converting {file.name}"):
        if detoxify:
            from interp.evaluation.detoxify import convert_detoxify

            folder = convert_detoxify(file, target, like=like)
        else:
            from interp.models.convert import convert_policy

            folder = convert_policy(file, workbench.Sides(pair).source(str(like)), target)
    if as_json:
        common.print_json({"folder": str(folder)})
    else:
        common.print_line(f"written: {folder}")
