"""Fitness: a number to maximise, with one score per example behind it. Importing this does not
import torch."""

from __future__ import annotations

from .comparison import Comparison, compare
from .data.loading import check_disjoint, load_examples
from .data.spec import DataSpec
from .example import Example
from .registry import (
    AnyTaskSpec,
    DifferentiableTask,
    JudgingTask,
    Task,
    TaskSpec,
    get_task,
    make_task,
    parse_task,
    register_task,
    task_names,
)
from .scores import Scores
from .tasks.agreement import AgreementSpec, AgreementTask
from .tasks.classification import ClassificationSpec, ClassificationTask
from .tasks.drawing import ClipSpec, ClipTask, draw
from .tasks.function import FunctionTask
from .tasks.generation import GenerationSpec, GenerationTask
from .tasks.harness import LmEvalSpec, LmEvalTask
from .tasks.likelihood import LikelihoodSpec, LikelihoodTask
from .tasks.multiple_choice import MultipleChoiceSpec, MultipleChoiceTask
from .tasks.perplexity import PerplexitySpec, PerplexityTask
from .tasks.retrieval import RetrievalSpec, RetrievalTask
from .tasks.reward import RewardSpec, RewardTask
from .tasks.word_problems import Gsm8kSpec, Gsm8kTask, MgsmSpec, MgsmTask
from .text.encoding import render_prompt

__all__ = [
    "AgreementSpec",
    "AgreementTask",
    "AnyTaskSpec",
    "ClassificationSpec",
    "ClassificationTask",
    "ClipSpec",
    "ClipTask",
    "Comparison",
    "DataSpec",
    "DifferentiableTask",
    "Example",
    "FunctionTask",
    "GenerationSpec",
    "GenerationTask",
    "Gsm8kSpec",
    "Gsm8kTask",
    "JudgingTask",
    "LikelihoodSpec",
    "LikelihoodTask",
    "LmEvalSpec",
    "LmEvalTask",
    "MgsmSpec",
    "MgsmTask",
    "MultipleChoiceSpec",
    "MultipleChoiceTask",
    "PerplexitySpec",
    "PerplexityTask",
    "RetrievalSpec",
    "RetrievalTask",
    "RewardSpec",
    "RewardTask",
    "Scores",
    "Task",
    "TaskSpec",
    "check_disjoint",
    "compare",
    "draw",
    "get_task",
    "load_examples",
    "make_task",
    "parse_task",
    "register_task",
    "render_prompt",
    "task_names",
]
