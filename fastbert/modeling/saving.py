"""From a model to a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fastbert.checkpoints.files import CONFIG_NAME
from fastbert.checkpoints.saving import SaveOptions, save_checkpoint
from fastbert.checkpoints.transaction import Staging
from fastbert.generation.config import GENERATION_CONFIG
from fastbert.modeling.config import prepared_folder

if TYPE_CHECKING:
    from fastbert.modeling.base import PreTrainedModel


def save(
    model: PreTrainedModel,
    directory: str | os.PathLike[str],
    state_dict: Mapping[str, Tensor] | None,
    options: SaveOptions,
    beside: Callable[[Staging], None] | None = None,
) -> None:
    """Do the work of PreTrainedModel.save_pretrained, which documents the arguments.

    `beside` writes what else belongs to the checkpoint, in the same transaction.
    """
    folder = prepared_folder(directory)
    state = dict(model.state_dict() if state_dict is None else state_dict)
    for target, source in model.tied_weights().items():
        if target in state and source in state and _same(state[target], state[source]):
            del state[target]
    model.config.architectures = [type(model).__name__]
    model.config.dtype = model.dtype
    texts = {CONFIG_NAME: model.config.to_json_string()}
    if model.can_generate():
        generation: Any = model.generation_config
        texts[GENERATION_CONFIG] = generation.to_json_string()
    save_checkpoint(folder, texts, state, options, beside)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape
