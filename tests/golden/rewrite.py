"""Rewrite every golden file: `python tests/golden/rewrite.py`. Then review the diff.

A test file in this folder that owns golden files has a function `rewrite()`.
"""

import runpy
from pathlib import Path

if __name__ == "__main__":
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        rewrite = runpy.run_path(str(path)).get("rewrite")
        if rewrite is not None:
            rewrite()
