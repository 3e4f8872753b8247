"""The task feature-extraction: the last hidden states."""

from __future__ import annotations

from typing import Any

from fastbert.pipelines.base import Pipeline


class FeatureExtraction(Pipeline):
    """The last hidden states of the tokens of texts."""

    task = "feature-extraction"
    auto_class = "AutoModel"

    def answer(
        self,
        items: list[Any],
        truncation: bool | str | None = None,
        tokenize_kwargs: dict[str, Any] | None = None,
        return_tensors: bool = False,
    ) -> list[Any]:
        """Compute the last hidden states of every text.

        Args:
            items: texts.
            truncation: cut texts that are too long; they are refused otherwise.
            tokenize_kwargs: further arguments of the tokenizer.
            return_tensors: return tensors rather than lists.

        Returns:
            (1, tokens, hidden) for every text: float32 tensors, or nested lists.

        Raises:
            ValueError: for truncation given twice.
        """
        arguments = dict(tokenize_kwargs or {})
        if truncation is not None:
            if "truncation" in arguments:
                raise ValueError("Give truncation either itself or in tokenize_kwargs, not both.")
            arguments["truncation"] = truncation
        rows = self.rows(self.tokenize(self.texts(items), **arguments)) if items else []
        vectors = [value[None] for value in self.token_outputs(rows, 0)]
        return vectors if return_tensors else [value.tolist() for value in vectors]
