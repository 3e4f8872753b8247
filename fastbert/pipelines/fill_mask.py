"""The task fill-mask: the likeliest tokens where a text has its mask token."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastbert.pipelines.base import Pipeline, check_limit

_log = logging.getLogger("fastbert")

_TOP_K = 5


class FillMask(Pipeline):
    """Scores the vocabulary at the masks only, never at the other tokens."""

    task = "fill-mask"
    auto_class = "AutoModelForMaskedLM"

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """Answer as Pipeline does; a list of one text gives that text's answer."""
        answers = super().__call__(inputs, **options)
        return answers[0] if isinstance(inputs, (list, tuple)) and len(inputs) == 1 else answers

    def answer(
        self,
        items: list[Any],
        top_k: int | None = None,
        targets: str | list[str] | None = None,
        tokenizer_kwargs: dict[str, Any] | None = None,
    ) -> list[Any]:
        """Find the likeliest tokens for the masks of every text.

        Args:
            items: texts with the tokenizer's mask token.
            top_k: how many tokens, 5 by default; with targets no more than there are targets.
            targets: the tokens to choose from; their scores stay those of the whole vocabulary.
            tokenizer_kwargs: further arguments of the tokenizer.

        Returns:
            For every text a list of {"score", "token", "token_str", "sequence"}, the best token
            first; for a text with several masks one such list for each mask.

        Raises:
            ValueError: for a text without mask, a tokenizer without one, or no usable target.
        """
        top_k = _TOP_K if top_k is None else top_k
        check_limit("top_k", top_k)
        mask_id = self.tokenizer.mask_token_id
        if mask_id is None:
            raise ValueError("fill-mask needs a tokenizer with a mask token; this one has none.")
        target_ids = None if targets is None else self._target_ids(targets)
        if not items:
            return []
        rows = self.rows(self.tokenize(self.texts(items), **(tokenizer_kwargs or {})))
        for text, row in zip(items, rows, strict=True):
            if mask_id not in row["input_ids"]:
                raise ValueError(
                    f"No mask token ({self.tokenizer.mask_token}) found in {text[:60]!r}; put it "
                    "where a token is to be filled in."
                )
        answers: list[Any] = []
        for indices, inputs in self.batches(rows):
            masked = inputs["input_ids"] == mask_id
            scores = self.model(**inputs, logits_to_keep=masked).logits.float().softmax(-1).cpu()
            counts = masked.sum(dim=1).tolist()
            for index, values in zip(indices, scores.split(counts), strict=True):
                answers.append(
                    self._text_answer(rows[index]["input_ids"], values, target_ids, top_k)
                )
        return answers

    def _text_answer(
        self, ids: Sequence[int], scores: Tensor, targets: Tensor | None, top_k: int
    ) -> list[Any]:
        """Build the answer for one text.

        Args:
            ids: the text's tokens.
            scores: (masks, vocabulary), probabilities at every mask of the text.
            targets: sorted ids of the tokens to choose from; None for the whole vocabulary.
            top_k: how many tokens for each mask.
        """
        if targets is not None:
            scores, top_k = scores[:, targets], min(top_k, targets.shape[0])
        values, columns = scores.topk(min(top_k, scores.shape[-1]))
        tokens = columns if targets is None else targets[columns]
        mask_id = self.tokenizer.mask_token_id
        positions = [position for position, token in enumerate(ids) if token == mask_id]
        alone = len(positions) == 1
        found = []
        for position, best, chosen in zip(positions, values.tolist(), tokens.tolist(), strict=True):
            row = []
            for score, token in zip(best, chosen, strict=True):
                filled = [*ids[:position], token, *ids[position + 1 :]]
                filled = [value for value in filled if value != self.tokenizer.pad_token_id]
                row.append(
                    {
                        "score": score,
                        "token": token,
                        "token_str": self.tokenizer.decode([token]),
                        # Other masks are special tokens too, and must stay to be seen.
                        "sequence": self.tokenizer.decode(filled, skip_special_tokens=alone),
                    }
                )
            found.append(row)
        return found[0] if alone else found

    def _target_ids(self, targets: str | list[str]) -> Tensor:
        """Return the sorted ids of the targets; of a target that is no token its first piece's."""
        vocabulary = self.tokenizer.get_vocab()
        found: dict[int, None] = {}
        for target in [targets] if isinstance(targets, str) else targets:
            token = vocabulary.get(target)
            if token is None:
                pieces = self.tokenize(target, add_special_tokens=False)["input_ids"]
                if not pieces:
                    _log.warning("fill-mask: the target %r is no token and is ignored", target)
                    continue
                token = pieces[0]
                _log.warning(
                    "fill-mask: the target %r is no token; its first one, %r, is scored",
                    target,
                    self.tokenizer.convert_ids_to_tokens(token),
                )
            found[token] = None
        if not found:
            raise ValueError("None of the targets is a token of this model's vocabulary.")
        return torch.tensor(sorted(found), device="cpu")
