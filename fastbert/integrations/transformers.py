"""Training under transformers: its Trainer, saving fastbert's models as transformers saves its own.

Everything else of that Trainer works as it is: callbacks, metrics, resuming, mixed precision,
several processes, adapters of peft. Importing this also lets transformers load int8 models that
fastbert saved. This room imports transformers, the rest of fastbert never.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from fastbert.modeling.base import PreTrainedModel
from fastbert.tokenizers.base import Tokenizer

try:
    import transformers
except ImportError as error:
    raise ImportError(
        "fastbert.integrations.transformers needs transformers and accelerate; install them with "
        "`pip install 'transformers[torch]'`."
    ) from error

# Below the check: it needs transformers at once.
from fastbert.integrations import quantizer
from fastbert.integrations.attention import register_attention

__all__ = ["Trainer", "register_attention"]

quantizer.register()

_PARAMETERS = inspect.signature(transformers.Trainer)


class Trainer(transformers.Trainer):
    """transformers' Trainer, whose checkpoints of fastbert's models are whole checkpoints.

    transformers' own writes the bare weights of a model that is none of its classes, without
    config.json, and refuses tied weights. This one calls the model's `save_pretrained`. A tokenizer
    of fastbert as processing_class pads the batches, as one of transformers does there.

    Args:
        *args: those of transformers.Trainer.
        **kwargs: likewise.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        given = _PARAMETERS.bind(*args, **kwargs).arguments
        tokenizer = given.get("processing_class")
        if given.get("data_collator") is None and isinstance(tokenizer, Tokenizer):
            given["data_collator"] = transformers.DataCollatorWithPadding(cast(Any, tokenizer))
        super().__init__(**given)

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None
    ) -> None:
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if not isinstance(model, PreTrainedModel):
            super()._save(output_dir, state_dict)
            return
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir or ".")
        model.save_pretrained(folder, state_dict=state_dict)
        tokenizer = self.processing_class or getattr(self.data_collator, "tokenizer", None)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        torch.save(self.args, folder / "training_args.bin")
