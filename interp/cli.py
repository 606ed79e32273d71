"""The command line `bypass`. A command's libraries are imported only when that command is called, so that help is fast.

Commands live in `interp/commands`, one file per command; those of `training` and `app`, which this package must not
import at its top, are registered here. Every failure of a command is reported here: bad input as one line on stderr with exit
code 2, a fault of bypass as one line with exit code 1, or as a traceback where BYPASS_DEBUG is set.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from interp.commands.common import PAIR_HELP, PAIR_VALUES
from interp.commands.examples import epilog
from interp.commands.pairs import VERIFIERS, pairs
from interp.commands.undo import RUNNERS
from interp.errors import Notice, UserError
from interp.files import is_full_disk
from interp.models.named import NAMED

DEBUG = "BYPASS_DEBUG"
COMMANDS = {
    "report": "report", "evaluate": "evaluate", "generate": "generate", "sweep": "sweep", "vectors": "vectors", "lens": "lens",
    "attribute": "attribute", "patch": "patch", "score": "score", "convert": "convert", "doctor": "doctor", "undo": "undo",
}  # fmt: skip
# Errors of the operating system that a wrong path causes; a full disk is not one of them.
BAD_PATHS = (
    errno.EACCES,
    errno.EPERM,
    errno.ENOENT,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EROFS,
)
LONGEST = 600
# The exit code of a command that was stopped with Ctrl-C.
STOPPED = 130
INTERRUPTED = "interrupted. Run the same command again: a report and a training run go on from what is finished"


class Commands(TyperGroup):
    """The group of commands, whose errors all become one line on stderr and an exit code."""

    def main(self, args: Any = None, prog_name: str | None = None, *, standalone_mode: bool = True, **named: Any) -> Any:  # type: ignore[override]
        """Run the command that the arguments name; without arguments, show the help."""
        arguments = with_both_sides(list(sys.argv[1:] if args is None else args)) or ["--help"]
        if not standalone_mode:
            return super().main(arguments, prog_name, standalone_mode=False, **named)
        sys.exit(guarded(lambda: super(Commands, self).main(arguments, prog_name, standalone_mode=False, **named)))


def with_both_sides(arguments: list[str]) -> list[str]:
    """The arguments with the name of a pair written twice, once for each side, as `--pair` takes two values.

    After `--pair smollm2`, what follows is a second value only where it is a folder, a GGUF file or a hub id. What stands behind `--`
    is left as it is: texts may be any words.
    """
    whole: list[str] = []
    end = arguments.index("--") if "--" in arguments else len(arguments)
    for place, argument in enumerate(arguments[:end]):
        option, _, joined = argument.partition("=")
        if option == "--pair" and joined in NAMED:
            whole += ["--pair", joined, joined]
            continue
        whole.append(argument)
        if place and arguments[place - 1] == "--pair" and argument in NAMED:
            following = arguments[place + 1] if place + 1 < len(arguments) else ""
            if not (os.path.isdir(following) or following.endswith(".gguf") or re.fullmatch(r"[\w.-]+/[\w.-]+", following)):
                whole.append(argument)
    return [*whole, *arguments[end:]]


def guarded(call: Callable[[], Any]) -> int:
    """The exit code of a command after running it; an error is written as one line to stderr."""
    try:
        code = call()
        sys.stdout.flush()
        if code == STOPPED:
            # Typer turns Ctrl-C into this exit code without a word.
            return _say(INTERRUPTED, STOPPED)
        return code if isinstance(code, int) else 0
    except BrokenPipeError:
        # The reader of stdout has gone (`bypass lens ... | head`); what is left in the buffer must not fail again at exit.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return _say(INTERRUPTED, STOPPED)
    except typer.Abort:
        return _say("aborted", 1)
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "bypass"
        return _say(f"{error.format_message().strip().rstrip('.')}. Fix: see {command} --help.", error.exit_code)
    except UserError as error:
        return _say(str(error), 2)
    except Exception as error:
        if os.environ.get(DEBUG, "0") not in ("", "0"):
            raise
        if isinstance(error, OSError) and error.errno in BAD_PATHS and error.filename is not None:
            return _say(f"{error.filename}: {error.strerror}. Fix: check the path.", 2)
        if is_full_disk(error):
            where = getattr(error, "filename", None) or "the disk"
            return _say(f"{where}: no space is left. Fix: free some and run this again; what is finished is kept.", 2)
        return _say(f"{type(error).__name__}: {error} (a fault of bypass; {DEBUG}=1 shows where)", 1)


def _say(text: str, code: int) -> int:
    line = "".join(letter if letter.isprintable() else " " for letter in f"bypass: {text}")
    line = " ".join(line.encode("utf-8", "backslashreplace").decode().split())
    if len(line) > LONGEST:
        line = f"{line[: LONGEST // 2]} … {line[-LONGEST // 2 :]}"
    sys.stderr.write(line + "\n")
    return code


def _show_notice(message: Warning | str, category: type[Warning], *place: object, **more: object) -> None:
    """Print a `Notice` as one line on stderr."""
    _say(str(message), 0)


app = typer.Typer(
    name="bypass", cls=Commands, add_completion=False, context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip


def _show_version(asked: bool | None) -> None:
    if asked:
        sys.stdout.write(f"bypass {version('bypass-workbench')}\n")
        raise typer.Exit


@app.callback()
def root(
    shows_version: Annotated[
        bool | None, typer.Option("--version", is_eager=True, callback=_show_version, help="print the version, and nothing else")
    ] = None,
) -> None:
    """What does preference tuning change inside a language model, and what does it leave behind?"""


for _module, _command in COMMANDS.items():
    app.command(_command, epilog=epilog(_command))(getattr(import_module(f"interp.commands.{_module}"), _command))
app.add_typer(pairs, name="pairs")


@app.command(epilog=epilog("train"))
def train(
    stage: Annotated[
        str, typer.Argument(help="corpus, tokenizer, pretrain, continue, sharpen, scorer, probe, pairs, dpo, bundle; all, grid or settings")
    ],
    recipe: Annotated[str, typer.Argument(help="a TOML file, or the name of a recipe that ships; for settings a stage")],
    again: Annotated[bool, typer.Option("--again", help="run from the start, also where nothing has changed")] = False,
) -> None:
    """Run one stage of the training chain, or all of them in turn; what has not changed is not run again."""
    from training.cli import run_stage

    code = run_stage(stage, recipe, again=again)
    if code:
        raise typer.Exit(code)


def _verify(
    result: Any, model: Any, learning_rate: float, optimizer: str, seed: int, folder: Path, tell: Callable[..., None]
) -> dict[str, Any]:
    """The check of `bypass pairs audit --verify`, which trains."""
    from training.filters import Training, verify

    return verify(result, model, Training(learning_rate, optimizer, seed), folder=folder, tell=tell)


VERIFIERS.append(_verify)


def _undo(
    pair: Any, arms: Any, reference: Any, plan: dict[str, Any], attacks: Any, folder: Path, budget: float | None,
    say: Callable[[str], object], tell: Callable[..., None], plan_only: bool,
) -> Any:  # fmt: skip
    """The runs of `bypass undo`, which trains."""
    from training.undo import run_plan

    return run_plan(pair, arms, reference, plan, attacks, folder, budget, say, tell, plan_only)


RUNNERS.append(_undo)


def _launchable() -> bool:
    """Whether the app is installed; looking for `app.launch` itself would import `app`."""
    spec = find_spec("app")
    return spec is not None and any(Path(folder, "launch.py").is_file() for folder in spec.submodule_search_locations or ())


if _launchable():

    @app.command("app", epilog=epilog("app"))
    def start(
        port: Annotated[int, typer.Option(min=1, max=65535, help="where the browser finds it")] = 8501,
        host: Annotated[str, typer.Option(help="the address that it listens on")] = "localhost",
        browser: Annotated[bool, typer.Option(help="open a browser window")] = True,
        demo: Annotated[bool, typer.Option(help="for visitors: nothing can be loaded or saved")] = False,
        pair: Annotated[tuple[str, str] | None, typer.Option("--pair", metavar=PAIR_VALUES, help=f"what it opens on: {PAIR_HELP}")] = None,
    ) -> None:
        """Open the workbench in a browser."""
        from app.launch import launch

        raise typer.Exit(launch(port=port, host=host, browser=browser, demo=demo, pair=pair))


def quiet() -> None:
    """Keep libraries from writing to stderr, which is for error lines and the progress bar."""
    if os.environ.get(DEBUG, "0") in ("", "0"):
        warnings.filterwarnings("ignore")
        warnings.filterwarnings("always", category=Notice)
        warnings.showwarning = _show_notice
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def main() -> None:
    """The entry point of the command `bypass`."""
    quiet()
    for stream in (sys.stdout, sys.stderr):
        # Some terminals cannot show every letter; an escape is better than a crash.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    app()


if __name__ == "__main__":
    main()
