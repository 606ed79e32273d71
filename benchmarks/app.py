"""Waiting times of the app: `python -m benchmarks.app` measures them in a real browser, and writes `app.json` and `APP.md`.

A wait lasts from the click until what is visible on the page has stopped changing. Everything is measured on the pair that
ships, on the machine named in the table, with one person at a time except where eight are named. `--pair smollm2` measures the pair
of that name, one person alone, into `app-smollm2.json` and the second part of the page.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlencode

from playwright.sync_api import Browser, Page
from playwright.sync_api import TimeoutError as PlaywrightTimeoutError

from app.harness import browsing, free_port, open_at, running_app, settle
from app.launch import PATIENCE, healthy
from app.settings import PAIR
from app.shell import PAGES
from interp.environment import machine, versions
from interp.models.named import NAMED

HERE = Path(__file__).parent
# A page, a control of it, and its wait in seconds, or None where the page does not have it when it opens.
Waited = tuple[str, str, float | None]
QUIET_MS = 400
PEOPLE = 8
# Not the whole window: the sign that the page is running goes away some time after the page has answered. Nor what nobody sees: the
# names of things for screen readers, the copy of a table that lies behind its canvas, and the tip that a resting pointer opens.
WATCH = """() => {
  window.changed = window.stirred = performance.now();
  const seen = change => {
    const place = change.type === 'childList' ? change.target : change.target.parentElement;
    return !(change.attributeName || '').startsWith('aria-') && !(place && place.closest('canvas'));
  };
  new MutationObserver(changes => {
    window.stirred = performance.now();
    if (changes.some(seen)) window.changed = window.stirred;
  })
    .observe(document.querySelector('[data-testid="stMain"]'), {subtree: true, childList: true, characterData: true, attributes: true});
}"""
# The last touch counts: a choice in a list is two clicks, of which only the second asks for something.
CLICK = """() => { window.clicked = null; const mark = () => { window.clicked = performance.now(); };
  for (const kind of ['pointerup', 'keydown']) document.addEventListener(kind, mark, {capture: true}); }"""
# When the parts of the first page are there, the bottom of the page included.
FIRST = """() => {
  window.since = {};
  const note = (name, there) => { if (there && !(name in window.since)) window.since[name] = Date.now(); };
  new MutationObserver(() => {
    const button = [...document.querySelectorAll('button')].some(node => node.innerText.includes('Continue it'));
    const said = document.querySelectorAll('.card .new:not(:empty)').length === 3;
    note('usable', button && said && document.querySelector('.facts') && document.querySelector('input[aria-label="Or your own"]'));
    note('figures', document.querySelectorAll('.js-plotly-plot .main-svg').length >= 12);
  }).observe(document, {subtree: true, childList: true, characterData: true});
}"""
PARTS: dict[str, tuple[str, float | None]] = {
    "usable": ("first page after `bypass app`: its numbers, what the three models said, and a field to type into", 5.0),
    "figures": ("the same page with its figures, but for the one that compares weights", None),
}
UNSEEN = "the same, until nothing changes any more, what nobody sees included"
OWN = "from `bypass app` to the first words of base and tuned on a prompt of one's own, typed as soon as it can be"
# Where both models have begun to continue what was typed.
SPOKEN = """typed => [...document.querySelectorAll('.card')].slice(0, 2).every(card =>
  card.querySelector('.given').innerText === typed && card.querySelector('.new').innerText) && Date.now()"""


@dataclass(frozen=True)
class Wait:
    """One kind of wait: its name, the promised bound (or None), its unit, and the measured values."""

    name: str
    promised: float | None
    unit: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median of the values."""
        return statistics.median(self.values)


@dataclass(frozen=True)
class Click:
    """One control of one page, and the action that uses it; none of them generates text."""

    page: str
    name: str
    act: Callable[[Page], object]


def pick(label: str) -> Callable[[Page], object]:
    """An action that clicks what has this label: a button, a tab, one of several choices."""
    return lambda page: page.locator('[data-testid="stMain"]').get_by_text(label, exact=True).first.click()


def choose(label: str, place: int) -> Callable[[Page], object]:
    """An action that opens a list and takes its entry number `place`."""

    def act(page: Page) -> None:
        # A list closes when the page scrolls, which a click on what is out of sight makes it do.
        box = page.get_by_role("combobox", name=label).first
        box.scroll_into_view_if_needed()
        page.wait_for_timeout(500)
        box.click()
        page.get_by_role("option").nth(place).click()

    return act


def press(label: str, key: str) -> Callable[[Page], object]:
    """An action that presses a key on a slider."""
    return lambda page: page.get_by_role("slider", name=label).first.press(key)


def fill(label: str, text: str) -> Callable[[Page], object]:
    """An action that types into a field and presses Enter."""

    def act(page: Page) -> None:
        page.get_by_label(label, exact=True).first.fill(text)
        page.get_by_label(label, exact=True).first.press("Enter")

    return act


def row(number: int) -> Callable[[Page], object]:
    """An action that clicks the box at the beginning of a row of the first table, which is drawn on a canvas."""
    return lambda page: page.get_by_test_id("stDataFrame").first.click(position={"x": 16, "y": 35 * number + 52})


def words(page: Page) -> None:
    """Flip the switch Show words."""
    page.locator('[data-testid="stSidebar"] [data-testid="stCheckbox"] label').first.click()


CLICKS = (
    Click("", "the switch Show words", words),
    Click("vectors", "a row of the table", row(3)),
    Click("vectors", "ranked by a word", pick("Word")),
    Click("vectors", "ranked by selectivity", pick("Selectivity")),
    Click("vectors", "pin a neuron", lambda page: page.get_by_role("button", name=re.compile(r"Pin \d+\.\d+")).first.click()),
    Click("vectors", "how many vectors share a direction", press("Value vectors", "ArrowLeft")),
    Click("bypass", "the layer", press("Layer", "ArrowLeft")),
    Click("bypass", "another neuron", choose("Toxic neuron of this layer", 1)),
    Click("bypass", "the plane of the plot", pick("first principal component")),
    Click("bypass", "the tab Activation drop", pick("Activation drop")),
    Click("bypass", "the tab Where it comes from", pick("Where it comes from")),
    Click("bypass", "the tab Logit lens", pick("Logit lens")),
    Click("steer", "the factor", fill("Times", "12")),
    Click("steer", "another kind of edit", pick("Add a direction")),
    Click("steer", "which keys", choose("Which", 1)),
    Click("steer", "the tab Python", pick("Python")),
    Click("evidence", "a row of the table", row(2)),
    Click("evidence", "another experiment", choose("Experiment", 4)),
    Click("training", "another stage", pick("pretrain")),
    Click("training", "more measures", lambda page: page.get_by_test_id("stExpander").first.locator("summary").click()),
)


def wait_for(page: Page, act: Callable[[Page], object]) -> tuple[float, float]:
    """Seconds from the click until what is visible has stopped changing, and until everything has; the page is at rest before."""
    page.evaluate(WATCH)
    page.wait_for_function(f"() => performance.now() - window.stirred > {QUIET_MS}")
    page.evaluate(CLICK)
    act(page)
    page.wait_for_function("() => window.clicked !== null && window.changed > window.clicked")
    settle(page, quiet=QUIET_MS / 1000)
    page.wait_for_function(f"() => performance.now() - window.stirred > {QUIET_MS}")
    seen, any_ = page.evaluate("[window.changed, window.stirred].map(end => (end - window.clicked) / 1000)")
    return float(seen), float(any_)


@contextmanager
def started(browser: Browser, pair: str | None = None) -> Iterator[tuple[float, Page]]:
    """The time at which the app was started on a pair, and its first page, opened as soon as it answers."""
    port = free_port()
    page = browser.new_page()
    page.set_default_timeout(PATIENCE * 1000)
    page.add_init_script(f"({FIRST})()")
    moment = time.time()
    command = [sys.executable, "-c", "from interp.cli import main; main()", "app", "--port", str(port), "--no-browser"]
    command += ["--pair", pair] if pair else []
    with tempfile.TemporaryDirectory() as folder, subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL) as process:
        try:
            healthy(f"http://localhost:{port}", process)
            page.goto(f"http://localhost:{port}", wait_until="commit")
            yield moment, page
            page.context.close()
        finally:
            process.terminate()


def first_page(browser: Browser, pair: str | None = None) -> dict[str, float]:
    """Seconds from starting the app until its first page can be read and typed into, and until its figures are drawn."""
    with started(browser, pair) as (moment, page):
        page.wait_for_function(f"() => Object.keys(window.since || {{}}).length === {len(PARTS)}", polling=200)
        return {name: at / 1000 - moment for name, at in page.evaluate("window.since").items()}


def own_prompt(browser: Browser, text: str, pair: str | None = None) -> float:
    """Seconds from starting the app until both models continue a prompt that is typed as soon as there is a field."""
    with started(browser, pair) as (moment, page):
        page.wait_for_function("() => window.since && 'usable' in window.since")
        field = page.get_by_label("Or your own", exact=True)
        field.fill(text)
        field.press("Enter")
        return float(page.wait_for_function(SPOKEN, arg=text).json_value()) / 1000 - moment


def first_token(page: Page) -> float:
    """Seconds from pressing Run until a continuation begins to grow."""
    page.evaluate("""() => { window.token = null; new MutationObserver(() => {
        if (window.token === null && window.clicked && document.querySelector('.card .cursor')
            && [...document.querySelectorAll('.card .new')].some(node => node.innerText)) window.token = performance.now();
      }).observe(document.body, {subtree: true, childList: true, characterData: true}); }""")
    page.evaluate(CLICK)
    page.locator('[data-testid="stMain"]').get_by_role("button", name="Run", exact=True).click()
    page.wait_for_function("() => window.token !== null")
    seconds = float(page.evaluate("(window.token - window.clicked) / 1000"))
    settle(page)
    return seconds


def crowd(browser: Browser, url: str, people: int, seed: int) -> list[float]:
    """Seconds that each of several people waits for three columns of 40 tokens, requested at the same moment."""
    contexts = [browser.new_context() for _ in range(people)]
    pages = [context.new_page() for context in contexts]
    for page in pages:
        page.set_default_timeout(PATIENCE * 1000)
        page.goto(f"{url}/steer?{urlencode({'new': 40, 'own': 'The day began'})}", wait_until="domcontentloaded")
    for page in pages:
        settle(page)
    for place, page in enumerate(pages):
        box = page.get_by_role("textbox", name="Or your own")
        box.fill(f"Person {place} of {people} said, {seed} times, that")
        box.press("Enter")
        settle(page)
        page.evaluate("""() => { window.over = null; window.begun = false; new MutationObserver(() => {
            const going = document.querySelector('.card .cursor') !== null;
            if (going) { window.begun = true; window.over = null; } else if (window.begun && window.over === null) window.over = Date.now();
          }).observe(document.body, {subtree: true, childList: true}); }""")
    started = []
    for page in pages:
        started.append(time.time())
        page.locator('[data-testid="stMain"]').get_by_role("button", name="Run", exact=True).click(no_wait_after=True)
    seconds = []
    for page, begun in zip(pages, started, strict=True):
        page.wait_for_function("() => window.over !== null && Date.now() - window.over > 1000")
        seconds.append(float(page.evaluate("window.over")) / 1000 - begun)
    for context in contexts:
        context.close()
    return seconds


def controls(browser: Browser, url: str, *, every: bool = True) -> tuple[list[Waited], list[float]]:
    """The wait of every control: (page, control, seconds until what is seen has stopped changing), and seconds until everything has.

    Unless `every` control has to be there, those that a page does not have when it opens have no seconds.
    """
    clicks: list[Waited] = []
    everything = []
    for click in CLICKS:
        page = open_at(browser, url, click.page)
        try:
            seen, any_ = wait_for(page, click.act)
        except PlaywrightTimeoutError:
            if every or page.evaluate("window.clicked") is not None:
                raise
            clicks.append((click.page, click.name, None))
            sys.stderr.write(f"{click.page}: {click.name}: not on the page\n")
        else:
            clicks.append((click.page, click.name, seen))
            everything.append(any_)
            sys.stderr.write(f"{click.page}: {click.name}: {seen:.2f} s, {any_:.2f} s\n")
        page.context.close()
    return clicks, everything


def first_tokens(browser: Browser, url: str, times: int) -> tuple[float, ...]:
    """Seconds until a continuation begins, on prompts and factors that nobody has asked for."""
    tokens = []
    for number in range(times):
        page = open_at(browser, url, f"steer?{urlencode({'own': f'Attempt {number} was made by'})}")
        page.get_by_label("Times", exact=True).fill(str(11 + number))
        page.get_by_label("Times", exact=True).press("Enter")
        settle(page)
        tokens.append(first_token(page))
        page.context.close()
    return tuple(tokens)


def measure_named(pair: str) -> tuple[list[Wait], list[Waited]]:
    """The waits of one person on a named pair: the first page, every page opened for the first and for the second time, every control."""
    with browsing() as browser:
        # Converts the file of the base model where that has not been done.
        first_page(browser, pair)
        starts = [first_page(browser, pair) for _ in range(2)]
        waits = [Wait(name, None, "s", tuple(start[part] for start in starts)) for part, (name, _) in PARTS.items()]
        waits.append(Wait(OWN, None, "s", (own_prompt(browser, "The first one said that", pair),)))
        with running_app(settings={PAIR: pair}) as url:
            for again in ("opened for the first time", "opened again, by another visitor"):
                for name, (title, _) in PAGES.items():
                    moment = time.monotonic()
                    page = open_at(browser, url, "" if name == "start" else name)
                    waits.append(Wait(f"the page {title}, {again}", None, "s", (time.monotonic() - moment,)))
                    sys.stderr.write(f"{waits[-1].name}: {waits[-1].median:.1f} s\n")
                    page.context.close()
            clicks, _ = controls(browser, url, every=False)
            seen = tuple(seconds for *_, seconds in clicks if seconds is not None)
            waits.append(Wait("a control that generates nothing", None, "s", seen))
            waits.append(Wait("first token of a continuation", None, "s", first_tokens(browser, url, 3)))
    return waits, clicks


def measure() -> tuple[list[Wait], list[Waited]]:
    """Every wait, and the wait of every click by itself."""
    with browsing() as browser:
        # The first start of all reads the libraries from the disk.
        first_page(browser)
        starts = [first_page(browser) for _ in range(3)]
        waits = [Wait(name, promised, "s", tuple(start[part] for start in starts)) for part, (name, promised) in PARTS.items()]
        waits.append(Wait(OWN, None, "s", tuple(own_prompt(browser, f"The {word} one said that") for word in ("first", "second", "third"))))
        with running_app() as url:
            clicks, everything = controls(browser, url)
            seen = tuple(seconds for *_, seconds in clicks if seconds is not None)
            waits.append(Wait("a control that generates nothing", 0.5, "s", seen))
            waits.append(Wait(UNSEEN, None, "s", tuple(everything)))
            waits.append(Wait("first token of a continuation", 0.5, "s", first_tokens(browser, url, 5)))
            ratios = []
            for seed in range(3):
                alone = crowd(browser, url, 1, 10 + seed)[0]
                together = crowd(browser, url, PEOPLE, 20 + seed)
                ratios.append(max(together) / alone)
                sys.stderr.write(f"alone {alone:.2f} s, the slowest of {PEOPLE} {max(together):.2f} s\n")
            waits.append(Wait(f"the slowest of {PEOPLE} people at once, over one alone", PEOPLE + 1.0, "times", tuple(ratios)))
    return waits, clicks


def write(waits: list[Wait], clicks: list[Waited], pair: str | None = None) -> None:
    """Write the record of a pair, and `APP.md` from all records."""
    record = {
        "machine": machine(), "versions": versions(), "waits": [asdict(wait) for wait in waits],
        "clicks": [{"page": page, "control": name, "seconds": seconds} for page, name, seconds in clicks],
    }  # fmt: skip
    (HERE / (f"app-{pair}.json" if pair else "app.json")).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (HERE / "APP.md").write_text(whole_page(), encoding="utf-8")


def whole_page() -> str:
    """The page as Markdown, made from the records alone."""
    named = sorted(HERE.glob("app-*.json"))
    parts = [json.loads(file.read_text(encoding="utf-8")) for file in (HERE / "app.json", *named)]
    return page_of(parts[0]) + "".join(
        named_part(file.stem.removeprefix("app-"), record) for file, record in zip(named, parts[1:], strict=True)
    )


def page_of(record: dict) -> str:
    """The part on the pair that ships."""
    lines = [
        "# How long people wait for the app", "",
        "Generated from `app.json` by `python -m benchmarks.app`, in a real browser, on the pair that ships; do not edit.",
        "A wait ends when what is seen has stopped changing. A control is used once, on a page that a new visitor has opened and that has "
        "come to rest.", "",
        "Not seen are the names of things for screen readers, the copy of a table that lies behind its canvas, and the tip that opens half "
        "a second after the pointer came to rest. The first versions of this table counted these too: the rule was changed after a "
        "miss, and both are given. What the three models said on the first page is from the written report, and the "
        "models are read meanwhile.", "",
    ]  # fmt: skip
    return "\n".join([*lines, *_tables(record)]) + "\n"


def named_part(pair: str, record: dict) -> str:
    """The part on a named pair."""
    lines = [
        "", f"# The same on `{pair}`", "",
        f"Generated from `app-{pair}.json` by `python -m benchmarks.app --pair {pair}`: one person alone; nothing was promised. What takes "
        "many forwards is offered behind a button: its time is not part of these waits, and controls that it brings are not on the page "
        "before.", "",
    ]  # fmt: skip
    return "\n".join([*lines, *_tables(record)]) + "\n"


def _tables(record: dict) -> list[str]:
    """The lines of both tables of a record."""
    lines = [
        f"{record['machine']['cores']} cores, streamlit {record['versions']['streamlit']}.", "",
        "| wait | median | least to most | promised |", "|---|---|---|---|",
    ]  # fmt: skip
    for item in record["waits"]:
        values, unit = item["values"], item["unit"]
        ends = f"{min(values):.2f} to {max(values):.2f}" if len(values) > 1 else "once"
        promised = "–" if item["promised"] is None else f"at most {item['promised']:g} {unit}"
        lines.append(f"| {item['name']} | {statistics.median(values):.2f} {unit} | {ends} | {promised} |")
    lines += ["", "Each control by itself:", "", "| page | control | wait |", "|---|---|---|"]
    return lines + [
        f"| {item['page'] or 'start'} | {item['control']} | "
        + ("not on the page when it opens |" if item["seconds"] is None else f"{item['seconds']:.2f} s |")
        for item in record["clicks"]
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pair", choices=sorted(NAMED))
    chosen = parser.parse_args().pair
    write(*(measure_named(chosen) if chosen else measure()), chosen)
    sys.stdout.write((HERE / "APP.md").read_text(encoding="utf-8"))
