"""What the commands share: common options, input files, and printing of tables and JSON.

JSON holds raw words and full precision; all other output is masked and shows control characters as escapes, because a model may
generate any of them.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp import workbench
from interp.errors import UserError

if TYPE_CHECKING:
    from rich.progress import Progress

    from interp.data.texts import Passage
    from interp.forward.generate import Sampling
    from interp.models.chat import Chat
    from interp.models.model import Model

PROMPTS_HELP = "txt with one a line; csv, tsv, json or jsonl with `prompt`"
MODEL_HELP = "base, tuned, a folder, a GGUF file or a hub id"
PAIR_VALUES, PAIR_HELP = "BASE TUNED | NAME", "folders, GGUF files or hub ids, or a name such as smollm2"
Pair = Annotated[tuple[str, str] | None, typer.Option("--pair", metavar=PAIR_VALUES, help=f"in place of the bundled pair: {PAIR_HELP}")]
Device = Annotated[
    str | None, typer.Option("--device", metavar="DEVICE", help="cpu, cuda or cuda:1 [default: what BYPASS_DEVICE names, or cpu]")
]
Edits = Annotated[
    list[str] | None,
    typer.Option("--edit", metavar="EDIT", help="an edit in its short form, such as scale_keys:5.770:10, or a JSON file; can be repeated"),
]
Bos = Annotated[
    bool | None, typer.Option("--bos/--no-bos", help="begin every text with the BOS token, or not [default: as the model's tokenizer does]")
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON for machines, with raw words")]
ShowWords = Annotated[bool, typer.Option("--show-words", help="do not mask profanity")]
ScorerName = Annotated[str, typer.Option("--scorer", help="bundled, lexicon, or a folder that bypass convert --detoxify wrote")]
Prompts = Annotated[Path | None, typer.Option("--prompts", help=f"{PROMPTS_HELP} [default: those that ship]")]
Passages = Annotated[
    Path | None, typer.Option("--passages", help="csv, tsv, json or jsonl with `prompt` and `continuation` [default: those that ship]")
]
ProbeFolder = Annotated[
    Path | None,
    typer.Option("--probe", help="a folder that bypass train probe wrote [default: the one that ships, or one fitted here]"),
]
SecondScorer = Annotated[
    str, typer.Option("--second-scorer", help="another scorer beside it in every verdict on toxicity, as for --scorer, or none")
]
NewTokens = Annotated[int, typer.Option("--new-tokens", "--max-new-tokens", help="tokens to generate for each prompt")]
PromptTokens = Annotated[
    int | None, typer.Option("--max-prompt-tokens", help="of longer prompts only the last ones are read [default: refused if too long]")
]
AsChat = Annotated[bool, typer.Option("--chat", help="prompts are user turns of the model's chat template [default: raw text]")]
SystemPrompt = Annotated[str | None, typer.Option("--system", metavar="TEXT", help="with --chat: the system prompt before each")]
Temperature = Annotated[float, typer.Option(help="0 is greedy decoding")]
TopK = Annotated[int | None, typer.Option(help="sample from the k likeliest tokens")]
TopP = Annotated[float | None, typer.Option(help="sample from the likeliest tokens of this total probability")]
Seed = Annotated[int, typer.Option(help="of everything that is random")]


def sampling(temperature: float, top_k: int | None, top_p: float | None, seed: int) -> Sampling:
    """The `Sampling` that the options of a command describe."""
    from interp.forward.generate import Sampling

    return Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)


def chat_from(chat: bool, system: str | None) -> Chat | bool:
    """The `Chat` that `--chat` and `--system` describe, or False for raw text; raises `UserError` for `--system` alone."""
    from interp.models.chat import Chat

    if system is not None and not chat:
        raise UserError("--system is given without --chat, and raw text has no system prompt", "add --chat")
    return Chat(system) if chat else False


def chat_line(chat: Chat | bool) -> str:
    """How prompts are read, as a line above a command's tables."""
    from interp.models.chat import prompt_format

    return f"prompts read as {prompt_format(chat)}"


def prompts_from(path: Path | None) -> list[str]:
    """The prompts of the user's file, or the bundled challenge prompts."""
    from interp.data.texts import challenge_prompts, read_prompts

    return challenge_prompts() if path is None else read_prompts(path)


def passages_from(path: Path | None) -> list[Passage]:
    """The passages of the user's file, or the bundled ones."""
    from interp.data import texts

    return texts.passages() if path is None else texts.read_passages(path)


def sides(
    pair: tuple[str, str] | None = None, probe: Path | None = None, device: str | None = None, bos: bool | None = None
) -> workbench.Sides:  # fmt: skip
    """The models that the options of a command name; what has to be known of them is said on stderr as they are loaded."""
    return workbench.Sides(pair, probe, device, bos, note)


def note(text: str, bar: Progress | None = None) -> None:
    """Write one line to stderr: what a reader of the result has to know; with a bar that is drawn, above it."""
    line = f"bypass: {shown(text)}"
    if bar is not None and not bar.disable:
        bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
    else:
        sys.stderr.write(f"{line}\n")


def prompt_limit(model: Model, prompts: Sequence[str], new_tokens: int, most: int | None, chat: Chat | bool | None = False) -> int | None:
    """The number of tokens of a prompt that are read, the last ones of a longer prompt; None where none was asked for.

    Says on stderr how many prompts are cut; with `chat` none is, and one that is longer is refused where it is read. Without a limit
    a prompt that does not fit is refused there too.
    """
    from interp.forward import generate

    if most is None:
        return None
    if most < 1:
        raise UserError(f"--max-prompt-tokens is {most}", "give at least 1")
    limit = generate.prompt_limit(model, new_tokens, most)
    cut = 0 if chat else generate.count_cut(model, prompts, limit)
    if cut:
        note(generate.note_on_cut(cut, len(prompts), limit))
    return limit


def check_prompts(model: Model, prompts: Sequence[str], new_tokens: int, chat: Chat | bool | None = False) -> None:
    """Raise `UserError` for prompts that leave no room for the continuation, before any work is done."""
    from interp.forward import generate
    from interp.models.chat import prompt_rows

    limit = generate.prompt_limit(model, new_tokens)
    if chat:
        prompt_rows(model, prompts, chat, max_tokens=limit)
        return
    cut = generate.count_cut(model, prompts, limit)
    if cut:
        raise UserError(
            f"{cut} of {len(prompts)} prompts are longer than the {limit} tokens that leave room for a continuation",
            f"shorten them, or keep their last tokens: --max-prompt-tokens {limit}",
        )


def check_file(path: Path | None) -> None:
    """Raise `UserError` for a file that cannot be written, before any work is done."""
    if path is None:
        return
    if path.is_dir():
        raise UserError(f"{path} is a folder", "name a file")
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent}", "make it, or name another file")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"the folder {path.parent} cannot be written to", "name another")


def check_folder(path: Path) -> None:
    """Raise `UserError` for a folder that cannot be made or written to."""
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not there.is_dir():
        raise UserError(f"{there} is a file", "give a folder that exists or can be made")
    if not os.access(there, os.W_OK):
        raise UserError(f"the folder {there} cannot be written to", "name another")


def numbers(text: str, what: str) -> list[float]:
    """A list such as `0,1,2.5`; raises `UserError` for anything that is not a finite number."""
    values = []
    for part in text.split(","):
        try:
            value = float(part)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise UserError(
                f"{part.strip()!r} is not a usable number in {what} {text!r}", "write finite numbers with commas between, such as 0,1,2.5"
            )
        values.append(value)
    return values


def print_json(value: Any) -> None:
    """Print a value as JSON without NaN and infinity, which not every reader accepts.

    Where stdout is not UTF-8 every other letter than ASCII is written as the escape that JSON has for it.
    """
    from interp.results.result import plain

    encoding = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "").replace("_", "")
    sys.stdout.write(json.dumps(plain(value), ensure_ascii=encoding != "utf8", indent=1, allow_nan=False) + "\n")


def shown(text: str, show_words: bool = False) -> str:
    """A text for output: masked unless `show_words`, on one line, control characters as escapes."""
    from interp.data.lexicon import mask

    visible = text if show_words else mask(text)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in visible)


def print_line(text: str) -> None:
    """Print one line on stdout."""
    sys.stdout.write(text + "\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str = "", show_words: bool = False) -> None:
    """Print a table on stdout: texts to the left, numbers to the right with three digits."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from interp.results.result import is_number

    cells = [list(row) for row in rows]
    table = Table(
        title=Text(title) if title else None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        title_style="bold",
    )
    for place, name in enumerate(columns):
        numeric = bool(cells) and all(row[place] is None or is_number(row[place]) for row in cells)
        widest = max((len(word) for word in name.split()), default=0)
        table.add_column(Text(name), justify="right" if numeric else "left", overflow="fold", min_width=widest)
    for row in cells:
        table.add_row(*(Text(_cell(cell, name, show_words)) for name, cell in zip(columns, row, strict=True)))
    Console(file=sys.stdout).print(table)


def _cell(cell: Any, column: str, show_words: bool) -> str:
    from interp.results.result import is_number, show_number

    if isinstance(cell, tuple):  # lines of one cell
        return "\n".join(_cell(line, column, show_words) for line in cell)
    return show_number(cell, column) if cell is None or is_number(cell) else shown(str(cell), show_words)


@contextmanager
def progress(total: int | None = None, title: str = "") -> Iterator[tuple[Progress, Any]]:
    """A progress bar on stderr with elapsed and remaining time; nothing where stderr is not a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(file=sys.stderr)
    counted = (
        [BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()] if total else [TimeElapsedColumn()]
    )
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        *counted,
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        yield bar, bar.add_task(title, total=total)
