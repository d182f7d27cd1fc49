"""Fitness: a number to maximise, with one score per example behind it. Importing this does not
import torch."""

from __future__ import annotations

from .agreement import AgreementSpec, AgreementTask
from .classification import ClassificationSpec, ClassificationTask
from .comparison import Comparison, compare
from .data import DataSpec
from .drawing import ChoiceSpec, ChoiceTask, ClipSpec, ClipTask, draw
from .encoding import render_prompt
from .example import Example
from .function import FunctionTask
from .generation import GenerationSpec, GenerationTask
from .harness import LmEvalSpec, LmEvalTask
from .likelihood import LikelihoodSpec, LikelihoodTask
from .loading import check_disjoint, load_examples
from .multiple_choice import MultipleChoiceSpec, MultipleChoiceTask
from .perplexity import PerplexitySpec, PerplexityTask
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
from .retrieval import RetrievalSpec, RetrievalTask
from .scores import Scores
from .terms import TermsSpec, TermsTask
from .word_problems import Gsm8kSpec, Gsm8kTask, MgsmSpec, MgsmTask

__all__ = [
    "AgreementSpec",
    "AgreementTask",
    "AnyTaskSpec",
    "ChoiceSpec",
    "ChoiceTask",
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
    "Scores",
    "Task",
    "TaskSpec",
    "TermsSpec",
    "TermsTask",
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
