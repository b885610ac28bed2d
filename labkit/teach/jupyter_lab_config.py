"""`jupyter lab` opens on chapter 00, where it is started in the workbook's folder.

pyproject.toml installs this as JupyterLab's own configuration. An address with a path of its own, as Binder's
`?urlpath=` or `jupyter lab notebooks/05_rate_limiter.ipynb` give one, leads there as ever.
"""

from pathlib import Path

if Path("notebooks/00_start_here.ipynb").is_file():
    c.LabApp.default_url = "/lab/tree/notebooks/00_start_here.ipynb"  # type: ignore[name-defined]  # noqa: F821
