"""`jupyter notebook`, which is how repo2docker's images start, opens JupyterLab on chapter 00, too.

See jupyter_lab_config.py.
"""

from pathlib import Path

if Path("notebooks/00_start_here.ipynb").is_file():
    app = c.JupyterNotebookApp  # type: ignore[name-defined]  # noqa: F821
    app.default_url = "/lab/tree/notebooks/00_start_here.ipynb"
