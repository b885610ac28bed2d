"""The chapters with a database print on PostgreSQL what is stored in them, which SQLite printed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STEMS = ("03_cache", "04_session")


@pytest.mark.parametrize("stem", STEMS)
def test_chapter_is_green_on_postgresql(stem: str, postgres_url: str) -> None:
    chapter = ROOT / "notebooks" / f"{stem}.ipynb"
    command = [sys.executable, "-m", "pytest", "-n0", "-q", "-p", "no:cacheprovider", str(chapter)]
    environment = {**os.environ, "DATABASE_URL": postgres_url}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
