"""The chapters with a database print on PostgreSQL what is stored in them, which SQLite printed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
CHAPTERS = [f"notebooks/{stem}.ipynb" for stem in ("03_cache", "04_session")]


def test_chapters_are_green_on_postgresql(postgres_url: str) -> None:
    command = [sys.executable, "-m", "pytest", "-n0", "-q", "-p", "no:cacheprovider", *CHAPTERS]
    environment = {**os.environ, "DATABASE_URL": postgres_url}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
