"""The merge methods, one family a file. Importing this package registers them: one name here per file. No torch."""

from . import dare, linear, slerp, task_arithmetic, ties

__all__ = ["dare", "linear", "slerp", "task_arithmetic", "ties"]
