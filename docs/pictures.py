"""The pictures of the README, taken from the running app and from a report: `python docs/pictures.py [REPORT_FOLDER]`.

Everything that is seen comes from the pair that ships; nothing is drawn by hand. Run it again when a page has changed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from urllib.parse import urlencode

from playwright.sync_api import Page

from app.harness import browsing, open_at, running_app, settle

HERE = Path(__file__).parent
WIDTH, HEIGHT = 1360, 940
# A page, what its link sets, and how far down the picture begins (a text that stands at its top).
VIEWS = {
    "start": ("", {}, None),
    "vectors": ("vectors", {}, "Neuron 5.196"),
    "bypass": ("bypass", {}, None),
    "steer": ("steer", {}, None),
    "patching": ("patching", {}, "Which place carries the difference?"),
    "evidence": ("evidence", {}, None),
}


def shoot(page: Page, file: Path, top: str | None) -> None:
    """One picture; what needs a click on first sight has been clicked away."""
    page.get_by_role("button", name="Understood").click()
    settle(page, quiet=1.0)
    if top is not None:
        page.get_by_role("heading", name=top).first.evaluate("node => node.scrollIntoView()")
    settle(page, quiet=2.0)
    file.parent.mkdir(exist_ok=True)
    page.screenshot(path=file)
    sys.stderr.write(f"{file.name}\n")


def main(report: Path | None) -> None:
    with browsing() as browser:
        with running_app() as url:
            for name, (path, query, top) in VIEWS.items():
                page = open_at(
                    browser, url, f"{path}?{urlencode(query)}" if query else path, viewport={"width": WIDTH, "height": HEIGHT},
                )  # fmt: skip
                shoot(page, HERE / "pictures" / f"{name}.png", top)
                page.context.close()
        if report is not None:
            page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
            page.goto((report / "index.html").resolve().as_uri())
            page.wait_for_timeout(3000)
            page.screenshot(path=HERE / "report.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
