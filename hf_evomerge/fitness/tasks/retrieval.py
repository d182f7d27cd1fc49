"""Fitness of sentence encoders: whether a query's own passage is the nearest of all, by the cosine
of pooled hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ...errors import FitnessError
from ...recipes.strict_yaml import Count, Positive
from ..example import Example
from ..prepared import GradientTask
from ..registry import TaskSpec, register_task
from ..scores import Scores
from ..text.encoding import check_length, device_of, encodes, length_batches, scoring

if TYPE_CHECKING:
    import torch

    from ...checkpoints.sentence import Sentence

_DEPTH = 10  # ranks that count for nDCG


class RetrievalSpec(TaskSpec):
    """Score an encoder by how near it puts a query, the prompt, to its passage, the answer, among
    all passages."""

    task: Literal["retrieval"] = "retrieval"
    score: Literal["log_probability", "accuracy", "ndcg"] = "log_probability"
    """What the values are: ``log_probability``, that of the right passage under a softmax over all,
    which has a gradient; ``accuracy``, 1 where it is the nearest; or ``ndcg``, nDCG@10: 1 / log2(1
    + rank) up to rank 10, else 0."""
    pooling: Literal["mean", "cls", "lasttoken", "max"] | None = None
    """Pooling of a text's hidden states, by sentence-transformers' names; as the folder of the
    model says where absent, and ``mean`` where that says nothing."""
    temperature: Positive = 0.05
    """What cosines are divided by for the softmax."""
    max_tokens: Count = 256
    """Tokens after which a text is cut; the folder's ``max_seq_length`` where that is less."""
    batch_size: Count = 32
    """Texts in a forward pass. It changes memory and time, and scores in 8 bits alone."""

    kinds: ClassVar[tuple[str, ...]] = ("MODEL_MAPPING",)


# Q queries and P passages, each passage once; unit vectors q_i and p_j; s_ij = q_i . p_j. The score
# of query i with its passage j is the log-softmax over all passages at temperature t (InfoNCE; van
# den Oord et al., arXiv:1807.03748, equation 4):
#   log p = s_ij / t - logsumexp_k s_ik / t
# It has a gradient and sees near misses, where accuracy is flat. Every text is encoded once,
# however often it occurs. The rank of the right passage counts ties against it: a model that gives
# all texts one vector must not be right. nDCG@10 with one right passage is 1 / log2(1 + rank),
# since the ideal ranking has the value 1 (Jarvelin and Kekalainen 2002).
@register_task("retrieval")
class RetrievalTask(GradientTask):
    """Retrieval of the passage nearest to each query; ``outputs`` are the passages, ``correct``
    tells which are right."""

    spec_type = RetrievalSpec
    spec: RetrievalSpec

    def __init__(self, spec: RetrievalSpec) -> None:
        from ...checkpoints.sentence import (
            Sentence,
        )  # the Space, which has no encoders, has no checkpoints

        super().__init__(spec)
        self.sentence: Sentence = Sentence(Path())
        """Modules after the encoder, and prompts; who has the sources sets it."""
        self._texts: list[str] = []
        self._batches: list[tuple[list[int], dict[str, torch.Tensor]]] = []
        self._longest = 0

    def prepare(self, examples: Sequence[Example], tokenizer: Any) -> None:
        """Tokenise every text once, after its prompt.

        Raises:
            FitnessError: There is one passage for all, an example has pictures, or the folder's
                modules are not computed here.
        """
        from ..text.embedding import check_sentence

        super().prepare(examples, tokenizer)
        check_sentence(self.sentence, self.spec.pooling)
        if seeing := [example for example in examples if example.pictures]:
            raise FitnessError(
                f"{seeing[0].id}: has pictures, which are not retrieved; leave image_field out"
            )
        if len({example.answer for example in examples}) < 2:
            raise FitnessError(
                f"{examples[0].id}: all examples have one passage; nothing else can be nearer"
            )
        query, passage = self.sentence.prompts
        texts = [passage + example.answer for example in examples] + [
            query + example.prompt for example in examples
        ]
        self._texts = list(dict.fromkeys(texts))
        longest = self.sentence.settings.get("max_seq_length")
        cut = {
            "truncation": True,
            "max_length": min(self.spec.max_tokens, longest or self.spec.max_tokens),
        }
        lengths = [len(tokenizer(text, **cut)["input_ids"]) for text in self._texts]
        self._longest = max(lengths)
        self._batches = []
        for batch in length_batches(lengths, self.spec.batch_size):
            together = [self._texts[i] for i in batch]
            inputs = tokenizer(together, padding=True, return_tensors="pt", **cut)
            self._batches.append((batch, dict(inputs)))

    def _run(self, model: Any, *, gradient: bool) -> Scores:
        import torch

        check_length(model, self._longest, "the longest text")
        before_query, before_passage = self.sentence.prompts
        passages = list(dict.fromkeys(example.answer for example in self._examples))
        own = torch.tensor(
            [passages.index(example.answer) for example in self._examples], device=device_of(model)
        )
        with scoring(model, gradient=gradient):
            vectors = self._vectors(model)
            queries = torch.stack(
                [vectors[before_query + example.prompt] for example in self._examples]
            )  # (Q, hidden)
            cosines = (
                queries @ torch.stack([vectors[before_passage + passage] for passage in passages]).T
            )  # (Q, P)
            if not cosines.isfinite().all():
                raise FitnessError("the model's hidden states are not finite")
            right = cosines.gather(1, own[:, None])
            ranks = (cosines >= right).sum(1)  # from 1; a passage as near counts as nearer
            values = (cosines / self.spec.temperature).log_softmax(1).gather(1, own[:, None])[:, 0]
            if gradient:
                weights = values.new_tensor([example.weight for example in self._examples])
                (values * weights).mean().backward()
            correct = (ranks == 1).tolist()
            if self.spec.score == "ndcg":
                values = torch.where(ranks <= _DEPTH, 1 / torch.log2(ranks + 1.0), 0.0)
            outputs = [passages[place] for place in cosines.argmax(1).tolist()]
        return Scores(
            correct if self.spec.score == "accuracy" else values.tolist(),
            correct=correct,
            outputs=outputs,
        )

    def _vectors(self, model: Any) -> dict[str, torch.Tensor]:
        """The unit vector of every text, in float32."""
        import torch

        from ..text.embedding import pooled

        found: dict[str, torch.Tensor] = {}
        body = model.get_encoder() if encodes(model) else model.base_model
        device = device_of(model)
        for batch, inputs in self._batches:
            given = {name: values.to(device) for name, values in inputs.items()}
            states = body(**given).last_hidden_state.float()
            mask = given["attention_mask"].float()
            vectors = pooled(model, self.sentence, states, mask, self.spec.pooling)
            for i, vector in zip(batch, torch.nn.functional.normalize(vectors, dim=1), strict=True):
                found[self._texts[i]] = vector
        return found
