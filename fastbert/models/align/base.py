"""The base of ALIGN's image tower and of both towers together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypeVar, cast

import torch
from torch import nn

from fastbert.modeling.base import PreTrainedModel
from fastbert.modeling.config import PreTrainedConfig
from fastbert.modeling.encoding import Options
from fastbert.models.align.config import AlignConfig
from fastbert.outputs import ModelOutput, join_transformers

Output = TypeVar("Output", bound=ModelOutput)


@dataclass(frozen=True)
class Chosen:
    """What a caller wants of a forward; see Options."""

    hidden_states: bool
    return_dict: bool

    def finished(self, output: Output) -> Output:
        """Return an output as it is, or as a tuple, which the annotation does not say."""
        join_transformers()
        return output if self.return_dict else cast(Output, output.to_tuple())


def chosen(model: PreTrainedModel, options: Options) -> Chosen:
    """Settle the options of a forward by what the configuration says of those not given.

    Raises:
        TypeError: for an option that does not exist.
    """
    unknown = sorted(set(options) - set(Options.__annotations__))
    if unknown:
        raise TypeError(
            f"The forward of {type(model).__name__} has no argument {', '.join(unknown)}."
        )
    states, as_dict = options.get("output_hidden_states"), options.get("return_dict")
    config = model.config
    return Chosen(
        bool(config.output_hidden_states if states is None else states),
        bool(config.return_dict if as_dict is None else as_dict),
    )


class AlignPreTrainedModel(PreTrainedModel):
    """Base of ALIGN's models."""

    config_class: ClassVar[type[PreTrainedConfig]] = AlignConfig
    base_model_prefix = "align"

    def tied_weights(self) -> dict[str, str]:
        """Return none: ALIGN has no tied parameters."""
        return {}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            module.weight.normal_(0.0, self.config.initializer_range)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
