"""Open every page of the built site in a browser that reaches nothing else: .venv/bin/python docs/check.py out/docs"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from helpers import harness

_DRAWN = "() => [...document.querySelectorAll('.figure')].every(figure => figure.querySelector('.main-svg'))"
_BROKEN = "() => [...document.images].filter(image => !image.naturalWidth).map(image => image.src)"


def main() -> None:
    site = Path(sys.argv[1]).resolve()
    pages = sorted(site.rglob("*.html"))
    with harness.browser() as opened:
        watched = harness.Watched(harness.new_page(opened))
        for page in pages:
            watched.page.goto(page.as_uri())
            watched.page.wait_for_function(_DRAWN)
            if wrong := [*watched.hosts, *watched.errors, *watched.page.evaluate(_BROKEN)]:
                sys.exit(f"{page}: {wrong}")
        watched.page.goto(f"{(site / 'search.html').as_uri()}?q=refusal")
        watched.page.locator("ul.search li").first.wait_for()
    print(f"{len(pages)} pages, no request to outside. Open {site / 'index.html'}")


if __name__ == "__main__":
    main()
