"""The helpers of other folders of tests: models made on the spot, and running the project's own commands."""

import sys
from pathlib import Path

for name in ("pretrained", "end_to_end"):
    sys.path.insert(0, str(Path(__file__).parents[1] / name))
