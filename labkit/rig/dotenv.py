"""What the reader has set for docker-compose.yml: in the environment, or in the file .env beside it."""

from __future__ import annotations

import os
import re
from pathlib import Path

FILE = Path(__file__).parents[2] / ".env"


def setting(name: str, default: str) -> str:
    """The environment's, else that of .env; the default where that is empty, as Compose has it."""
    return os.environ.get(name, _written(name)) or default


def _written(name: str) -> str:
    """What .env says: the last line counts, without quotes or a comment."""
    text = FILE.read_text(encoding="utf-8-sig", errors="replace") if FILE.is_file() else ""
    values = re.findall(rf"^[ \t]*(?:export[ \t]+)?{name}[ \t]*=[ \t]*(.*?)[ \t]*$", text, re.M)
    value = values[-1] if values else ""
    quoted = re.match(r"""(['"])(.*?)\1""", value)
    return quoted[2] if quoted else re.sub(r"(^|\s+)#.*", "", value)
