"""A chapter as a page to read and as slides to show; with their libraries beside them they need no web.

nbconvert makes them, from the templates beside this module. The libraries that they load (reveal.js, Mermaid,
KaTeX) are fetched once with npm and lie in `lib/`, beside them: the folder can be carried on a stick. Where
there is no npm, they come from the web.
"""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.rig.node import npm as _npm

TEMPLATES = Path(__file__).parent / "templates"
LIBRARIES = {
    "reveal.js": ("5.2.1", ("LICENSE", "dist/reveal.js", "dist/reveal.css", "plugin/notes/notes.js")),
    "@mermaid-js/tiny": ("11.17.2", ("LICENSE", "dist/mermaid.tiny.js")),
    "katex": ("0.16.22", ("LICENSE", "dist/katex.min.js", "dist/contrib/auto-render.min.js")),
}
"""npm packages: their versions, and the files that pages and decks load."""

NPM_SECONDS = 120


@dataclass(frozen=True)
class Libraries:
    """Where pages find their libraries, relative to themselves; `problem` says why not beside them."""

    places: dict[str, str]
    problem: str = ""


def libraries(folder: Path) -> Libraries:
    """The libraries in `folder`/lib; those that are not there yet are fetched with npm.

    Where that cannot be, the pages load them from the web, and `problem` is a sentence with the remedy.
    """
    places = {name: f"lib/{name}-{version}" for name, (version, _) in LIBRARIES.items()}
    missing = [name for name, place in places.items() if not (folder / place).is_dir()]
    problem = _fetch(missing, folder, places) if missing else ""
    return Libraries({} if problem else places, problem)


def _fetch(names: list[str], folder: Path, places: dict[str, str]) -> str:
    """Put what is used of each package in its place; returns why not, or ""."""
    npm = _npm()
    advice = "they load reveal.js, Mermaid and MathJax from there. Remedy: "
    if not npm:
        return (
            f"The decks need the web, as there is no npm here: {advice}"
            "put Node.js on PATH, or `uv sync --group node`, which has it; then run this again."
        )
    with tempfile.TemporaryDirectory(prefix="labkit-") as place:
        wanted = [f"{name}@{LIBRARIES[name][0]}" for name in names]
        try:
            packed = subprocess.run(
                [*npm, "pack", "--silent", *wanted],
                cwd=place,
                capture_output=True,
                text=True,
                timeout=NPM_SECONDS,
            )
            archives = packed.stdout.split() if packed.returncode == 0 else []
            for name, archive in zip(names, archives, strict=True):
                _unpack(Path(place) / archive, LIBRARIES[name][1], folder / places[name])
        except (OSError, ValueError, KeyError, subprocess.SubprocessError, tarfile.TarError):
            return (
                f"The decks need the web, as npm could not fetch {', '.join(wanted)}: "
                f"{advice}run this again where npm can be used."
            )
    return ""


def _unpack(archive: Path, files: tuple[str, ...], folder: Path) -> None:
    """Those files of an npm package; all of them or none. Raises KeyError where one is not in it."""
    half = folder.with_name(folder.name + ".part")
    shutil.rmtree(half, ignore_errors=True)
    with tarfile.open(archive) as tar:
        for file in files:
            content = tar.extractfile(f"package/{file}")
            assert content is not None, f"{file} is a folder"
            target = half / file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content.read())
    half.replace(folder)


def page(chapter: Any, name: str, found: Libraries) -> str:
    """The chapter as one HTML page. Cells tagged `instructor` stand out."""
    from nbconvert.exporters import HTMLExporter

    exporter = HTMLExporter(template_name="page", **_options())  # type: ignore[no-untyped-call]
    return _export(exporter, chapter, name, found)


def slides(chapter: Any, name: str, found: Libraries) -> str:
    """The chapter as a deck for a screen of 1280 by 720.

    Cells of slide type `notes` are for the speaker alone: key S opens that view. Each slide is shown as large
    as its content allows.
    """
    from nbconvert.exporters import SlidesExporter

    bare = dict.fromkeys(("exclude_input_prompt", "exclude_output_prompt", "exclude_anchor_links"), True)
    exporter = SlidesExporter(template_name="deck", **bare, **_options())  # type: ignore[no-untyped-call]
    if found.places:
        exporter.reveal_url_prefix = found.places["reveal.js"]
    return _export(exporter, chapter, name, found)


def _options() -> dict[str, Any]:
    folders = [str(TEMPLATES)]
    return {"extra_template_basedirs": folders, "extra_template_paths": folders}


def _export(exporter: Any, chapter: Any, name: str, found: Libraries) -> str:
    resources = {"metadata": {"name": name}, "library": found.places, "source": _source}
    return str(exporter.from_notebook_node(chapter, resources)[0])


def _source(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")
