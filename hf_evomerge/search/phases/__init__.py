"""Phases of a search, one file each: what a phase costs, checks, does, and adds to the table of
results."""

from __future__ import annotations

from ..file.config import SearchConfig
from .baselines.alone import Alone
from .baselines.average import Average
from .baselines.leave_one_out import LeaveOneOut
from .baselines.lora import LoraTrainings
from .baselines.merge_lora import MergeWithLora
from .baselines.noise import Noise
from .baselines.prompt import Prompt
from .held_out import HeldOut
from .parents import Parents
from .phase import Phase
from .stages import StagePhase
from .winner import Winner

PHASES: tuple[type[Phase], ...] = (
    Parents,
    StagePhase,
    Winner,
    Average,
    Prompt,
    Alone,
    Noise,
    LoraTrainings,
    MergeWithLora,
    LeaveOneOut,
    HeldOut,
)
"""Kinds of phases, in the order that they run. A new baseline is a file here and a line above."""


def phases_of(config: SearchConfig) -> list[Phase]:
    """The phases that a search has, in the order that they run."""
    return [phase for kind in PHASES for phase in kind.wanted(config)]
