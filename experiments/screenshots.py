"""Screenshots of a page of `fl report`: light, dark, and as narrow as a telephone. It needs Debian's Chromium.

python -m experiments.screenshots report.html docs/img/report
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

QUIET = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
VIEWS = {"light": ("light", 1280, 900), "dark": ("dark", 1280, 900), "narrow": ("light", 420, 900)}
READY = "html[data-ready]"  # page.js sets it when all charts are drawn


def chromium() -> str | None:
    """The path of the system's Chromium, or None."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


@contextmanager
def browser() -> Iterator[Any]:
    """A headless browser of playwright, which ends with the context. Each one has a new profile."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium(), args=list(QUIET))
        try:
            yield opened
        finally:
            opened.close()


def shoot(opened: Any, page: Path, name: str, file: Path) -> None:
    """Write a screenshot of the top of a page.

    Args:
        opened: a browser.
        page: the HTML file.
        name: one of `VIEWS`.
        file: the PNG file.
    """
    scheme, width, height = VIEWS[name]
    tab = opened.new_page(color_scheme=scheme, viewport={"width": width, "height": height})
    tab.goto(page.resolve().as_uri())
    tab.wait_for_selector(READY, timeout=120_000)
    file.parent.mkdir(parents=True, exist_ok=True)
    tab.screenshot(path=str(file))
    tab.close()


def main(page: str, prefix: str) -> None:
    """Write PREFIX-light.png, PREFIX-dark.png and PREFIX-narrow.png."""
    with browser() as opened:
        for name in VIEWS:
            shoot(opened, Path(page), name, Path(f"{prefix}-{name}.png"))
            print(f"{prefix}-{name}.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
