"""Every chapter's slides in a real Chromium at 1280 by 720: nothing cut, nothing blank, nothing from the web.

Each slide is measured in the page. Of each deck a few are kept as pictures in `build/screenshots/`; with
LABKIT_THOROUGH=1 all are. Without a browser or npm they are skipped with the reason; in CI they fail instead.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
from test_browser import FLAGS, ROOT, SCREENSHOTS

from labkit.rig.doctor import find_browser
from labkit.teach import decks, instructor, refresh

CHAPTERS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
SMALLEST = 0.7
"""The smallest size that a slide is shown at (1: body text of 20 px); what needs more room is scrolled."""

# Looks at each slide as a class sees it, with all its fragments, apart from what deck.js thinks of it.
MEASURE = """() => {
  const [WIDE, HIGH] = [innerWidth, innerHeight];
  const parts = 'pre, table, img, svg, math, h1, h2, h3, p, li, .jp-OutputArea-output, .jp-InputArea-editor';
  return Reveal.getSlides().map(slide => {
    const {h, v} = Reveal.getIndices(slide);
    Reveal.slide(h, v, 999);
    const shown = [...slide.querySelectorAll(parts)].filter(
      part => !part.closest('aside') && part.getClientRects().length && !part.ownerSVGElement);
    const scrolls = getComputedStyle(slide).overflowY === 'auto' && slide.scrollHeight > slide.clientHeight;
    const faults = new Set();
    for (const part of shown) {
      const name = part.tagName.toLowerCase(), {left, right, top, bottom} = part.getBoundingClientRect();
      if (left < -1 || right > WIDE + 1) faults.add(`${name} is wider than the screen`);
      if (!scrolls && (top < -1 || bottom > HIGH + 1)) faults.add(`${name} is higher than the screen`);
      if (part.namespaceURI.endsWith('svg')) continue;
      if (part.scrollWidth > part.clientWidth + 1 && getComputedStyle(part).overflowX !== 'visible')
        faults.add(`${name} is cut at its side`);
      if (part.scrollHeight > part.clientHeight + 2 && getComputedStyle(part).overflowY === 'hidden')
        faults.add(`${name} is cut below`);
    }
    for (const img of slide.querySelectorAll('img'))
      if (!img.naturalWidth) faults.add('a picture is missing');
    for (const svg of slide.querySelectorAll('.labkit-diagram svg'))
      if (svg.getBBox().width < 50 || !svg.textContent.trim()) faults.add('a diagram is blank');
    if (slide.querySelector('pre.mermaid')) faults.add('a diagram is not drawn');
    const text = shown.map(part => part.textContent.trim()).join('');
    if (!text && !shown.some(part => part.matches('img, svg'))) faults.add('blank');
    return {
      h, v, scrolls, cell: slide.querySelector('.jp-Cell').id, faults: [...faults],
      size: Number(slide.dataset.size), diagram: !!slide.querySelector('.labkit-diagram'),
      plot: !!slide.querySelector('img'), notes: slide.querySelectorAll('aside.notes').length,
    };
  });
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path, skip = find_browser(), pytest.fail if os.environ.get("CI") else pytest.skip
    if path is None:
        skip("no Chromium here: apt-get install chromium")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, decks.Libraries]:
    """A folder with the libraries of the decks, and where they are in it."""
    folder = tmp_path_factory.mktemp("decks")
    libraries = decks.libraries(folder)
    if libraries.problem:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(libraries.problem)
    return folder, libraries


def opened(browser: Any, deck: Path) -> tuple[Any, list[str]]:
    """A page with the deck, ready to be shown; and a list that takes its errors and web requests."""
    page, troubles = browser.new_page(viewport={"width": 1280, "height": 720}), list[str]()
    page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
    page.on("request", lambda request: troubles.append(request.url) if _outside(request.url) else None)
    page.on("requestfailed", lambda request: troubles.append(f"missing: {request.url}"))
    page.goto(deck.as_uri())
    page.wait_for_function("window.Reveal && Reveal.isReady()", timeout=60_000)
    return page, troubles


def _outside(url: str) -> bool:
    return not url.startswith(("file:", "data:", "blob:", "about:"))


def picked(slides: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first slide, the fullest, and one with a diagram or a plot; with LABKIT_THOROUGH all of them."""
    if os.environ.get("LABKIT_THOROUGH"):
        return slides
    drawn = [slide for slide in slides if slide["diagram"]] or [slide for slide in slides if slide["plot"]]
    fullest = min(slides, key=lambda slide: (not slide["scrolls"], slide["size"]))
    return list({(one["h"], one["v"]): one for one in (slides[0], fullest, *drawn[:1])}.values())


def test_keys_and_the_speakers_view(browser: Any, found: tuple[Path, decks.Libraries]) -> None:
    """Space goes on, with Shift back; S opens a window with questions and solutions, none of them cut."""
    folder, libraries = found
    deck = folder / "keys.slides.html"
    deck.write_text(instructor.deck(refresh.read(CHAPTERS[0]), CHAPTERS[0].stem, libraries), encoding="utf-8")
    page, troubles = opened(browser, deck)
    places = [page.evaluate("Reveal.getSlidePastCount()")]
    for key in ("Space", "Space", "Shift+Space"):
        page.keyboard.press(key)
        places.append(page.evaluate("Reveal.getSlidePastCount()"))
    assert places == [0, 1, 2, 1]
    with page.expect_popup() as popup:
        page.keyboard.press("s")
    speaker = popup.value
    for words in ("Listen for", "A solution of encode"):
        page.evaluate(
            """words => {
                const said = slide => [...slide.querySelectorAll('aside')].some(
                    one => one.textContent.includes(words));
                const {h, v} = Reveal.getIndices(Reveal.getSlides().find(said));
                Reveal.slide(h, v);
            }""",
            words,
        )
        notes = speaker.locator(".speaker-controls-notes .value")
        notes.filter(has_text=words).wait_for(timeout=20_000)
        wide = "one => [...one.querySelectorAll('pre')].every(pre => pre.scrollWidth <= pre.clientWidth + 1)"
        assert notes.evaluate(wide), "code is wrapped"
    assert troubles == []
    page.close()


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_every_slide_of_a_deck_is_whole(
    chapter: Path,
    browser: Any,
    found: tuple[Path, decks.Libraries],
    record_property: Callable[[str, object], None],
) -> None:
    folder, libraries = found
    deck = folder / f"{chapter.stem}.slides.html"
    deck.write_text(instructor.deck(refresh.read(chapter), chapter.stem, libraries), encoding="utf-8")
    page, troubles = opened(browser, deck)
    slides = page.evaluate(MEASURE)
    assert {one["cell"]: one["faults"] for one in slides if one["faults"]} == {}
    assert [one["cell"] for one in slides if not one["size"] >= SMALLEST] == []
    assert len(slides) == page.evaluate("Reveal.getTotalSlides()") > 10
    assert sum(one["notes"] for one in slides) >= 1, "the speaker has notes"
    scrolled = [one["cell"].removeprefix("cell-id=") for one in slides if one["scrolls"]]
    assert len(scrolled) <= len(slides) // 20, f"to be scrolled: {scrolled}"
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    for one in picked(slides):
        page.evaluate(f"Reveal.slide({one['h']}, {one['v']}, 999)")
        picture = SCREENSHOTS / f"{chapter.stem}-{one['h']:02d}-{one['v']:02d}.png"
        page.screenshot(path=picture)
        pixels = matplotlib.image.imread(picture)[..., :3]
        assert pixels.shape[:2] == (720, 1280)
        assert (pixels.max(axis=2) < 0.6).mean() > 0.002, f"{picture.name} is blank"
    assert troubles == []
    page.close()
    more = f"; to be scrolled: {', '.join(scrolled)}" if scrolled else ""
    record_property("summary", f"deck {chapter.stem}: {len(slides)} slides{more}")
