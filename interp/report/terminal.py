"""Tables of results for a terminal of a hundred columns; the page has the details."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from interp.data.lexicon import mask
from interp.report.headlines import EXPLORATORY, exploratory, headlines
from interp.report.multiplicity import in_words, multiplicity
from interp.report.prompt_sets import PromptSet
from interp.report.seeds import Seeds
from interp.results.result import Result, show_number

WIDTH = 100
DAGGER = "†"
STYLES = {
    "holds": ("✓ holds", "green"),
    "fails": ("✗ fails", "red"),
    "inconclusive": ("? inconclusive", "yellow"),
    "not applicable": ("– not applicable", "dim"),
}


def print_summary(results: Sequence[Result], console: Console | None = None, *, show_words: bool = False) -> None:
    """Print the sentences that are told first, then one line per result (claim, verdict, headline effect, null), then its marks.

    A dagger marks an exploratory verdict.
    """
    console = console or Console()
    show = (lambda text: text) if show_words else mask
    width = min(WIDTH, console.width)
    for result in headlines(results):
        if result.sentence:
            word, style = STYLES[result.verdict]
            console.print(Text.assemble((f"{word}{_dagger(result)} ", style), show(result.sentence), f" ({result.id})"), width=width)
            if result.does_not_show:
                console.print(Text(f"  Limit: {show(result.does_not_show)}", style="dim"), width=width)
    if any(result.sentence for result in results):
        console.print()
    table = Table(width=width, box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    table.add_column("claim", ratio=5)
    table.add_column("verdict", no_wrap=True)
    table.add_column("effect", justify="right", no_wrap=True)
    table.add_column("null", justify="right", no_wrap=True)
    table.add_column("measured as", ratio=4)
    for result in results:
        word, style = STYLES[result.verdict]
        key = next(iter(result.statistic), None)
        effect, null = ("–", "–") if key is None else (show_number(result.statistic[key], key), show_number(result.null.get(key), key))
        name = "" if key is None else key.replace("_", " ")
        table.add_row(
            Text(result.id), Text(show(result.title)), Text(word + _dagger(result), style), Text(effect), Text(null), Text(show(name))
        )
    console.print(table)
    if any(exploratory(result) for result in results):
        console.print(Text(f"{DAGGER} {EXPLORATORY}"), width=width)
    for sentence in in_words(multiplicity(results)):
        console.print(Text(sentence), width=width)


def _dagger(result: Result) -> str:
    return DAGGER if exploratory(result) else ""


def print_seeds(seeds: Seeds, console: Console | None = None) -> None:
    """Print the number of verdicts that are the same under all seeds, and the others seed by seed."""
    console = console or Console()
    changing = [row for row in seeds.rows if not row.same]
    numbers = ", ".join(map(str, seeds.seeds))
    console.print(Text(f"seeds {numbers}: {len(seeds.rows) - len(changing)} of {len(seeds.rows)} verdicts are the same under all"))
    for row in changing:
        verdicts = ", ".join(f"{seed}: {verdict}" for seed, verdict in zip(seeds.seeds, row.verdicts, strict=True))
        console.print(Text(f"  {row.id} changes with the seed ({verdicts})"))


def print_prompt_sets(sets: Sequence[PromptSet], console: Console | None = None, *, show_words: bool = False) -> None:
    """Print one line per result on each of the sets of prompts; nothing where there are none."""
    console = console or Console()
    show = (lambda text: text) if show_words else mask
    for item in sets:
        console.print(Text(f"on {item.name} ({item.count})"), width=min(WIDTH, console.width))
        for result in item.results:
            word, style = STYLES[result.verdict]
            numbers = "".join(f"{key.replace('_', ' ')} {show_number(value, key)}, null {show_number(result.null.get(key), key)}"
                              for key, value in list(result.statistic.items())[:1])  # fmt: skip
            console.print(Text.assemble(f"  {result.id} ", (word, style), f"  {show(numbers)}"), width=min(WIDTH, console.width))
        for name, why in item.left_out.items():
            console.print(Text(f"  {name} was left out: {show(why)}"), width=min(WIDTH, console.width))
