"""What takes minutes or hours, or guards the benchmarks alone: `make test-all`, or `pytest tests/slow`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
