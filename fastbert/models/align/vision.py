"""The image tower of ALIGN: an EfficientNet, and the pooling of its last map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn, Unpack

import torch
from torch import Tensor, nn

from fastbert.modeling.encoding import Options, misplaced
from fastbert.models.align.base import AlignPreTrainedModel, chosen
from fastbert.models.align.config import AlignVisionConfig
from fastbert.models.align.folding import FoldedTower, Folding, NotFoldable, built
from fastbert.models.align.outputs import BaseModelOutputWithPoolingAndNoAttention
from fastbert.models.align.vision_modules import AlignVisionEmbeddings, AlignVisionEncoder
from fastbert.ops.depthwise_conv import SIDES
from fastbert.ops.operands import obstacle
from fastbert.runtime.plan import Plan, Traits, tell_of_torch


class AlignVisionModel(AlignPreTrainedModel):
    """The image tower.

    It loads from checkpoints of the tower alone and from those of the whole of ALIGN, whose other
    parts it leaves alone.
    """

    config_class = AlignVisionConfig
    base_model_prefix = "vision_model"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = False
    _no_split_modules = ["AlignVisionBlock"]
    # Older files lack it, and nothing reads it.
    _keys_to_ignore_on_load_missing = ["num_batches_tracked"]

    def __init__(self, config: AlignVisionConfig) -> None:
        super().__init__(config)
        config.check_buildable()
        self.embeddings = AlignVisionEmbeddings(config)
        self.encoder = AlignVisionEncoder(config)
        pool = nn.AvgPool2d if config.pooling_type == "mean" else nn.MaxPool2d
        self.pooler = pool(config.hidden_dim, ceil_mode=True)
        self._folding = Folding(built(self))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the convolution that reads pixels."""
        convolution: nn.Module = self.embeddings.convolution
        return convolution

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the convolution that reads pixels."""
        self.embeddings.convolution = value  # type: ignore[assignment]

    def traits(self) -> Traits:
        """See PreTrainedModel.traits."""
        ops: tuple[str, ...] = ("linear", "bias_act")
        if self._windows_on_kernels():
            ops += ("depthwise_conv", "channel_gate")
        return Traits(activation=self.config.hidden_act, ops=ops)

    def _windows_on_kernels(self) -> bool:
        """Whether kernels compute the blocks' convolutions with windows; else torch does."""
        return self.device.type == "cpu" and set(self.config.kernel_sizes) <= set(SIDES)

    def torch_parts(self) -> list[str]:
        """See PreTrainedModel.torch_parts."""
        parts = ["the convolutions of the image tower whose windows are larger than 1"]
        if self._windows_on_kernels():
            parts = ["the image tower's first convolution"]
        try:
            self._folding.tower(self)
        except NotFoldable as why:
            parts.append(f"{why}, so the image tower computes module by module")
        return parts

    def blocks(self) -> NoReturn:
        """Refuse: see the error.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "int8 weights and pruned heads are for encoders of texts; ALIGN's image tower has "
            "neither. Load it with dtype=torch.bfloat16 to halve its memory."
        )

    def prune_heads(self, heads_to_prune: dict[int, Sequence[int]]) -> None:
        """Refuse: see blocks.

        Raises:
            ValueError: always.
        """
        self.blocks()

    def forward(
        self, pixel_values: Tensor | None = None, **options: Unpack[Options]
    ) -> BaseModelOutputWithPoolingAndNoAttention:
        """Encode images.

        Args:
            pixel_values: floating (batch, channels, height, width), as an image processor makes it.
            **options: output_hidden_states and return_dict; output_attentions changes nothing.

        Returns:
            BaseModelOutputWithPoolingAndNoAttention, or its tuple.

        Raises:
            ValueError: for no images, or images that do not fit the model.
            TypeError: for an option that does not exist, or pixels that are no floating numbers.
        """
        wanted = chosen(self, options)
        pixels = self._checked(pixel_values)
        last, states = self._maps(pixels, wanted.hidden_states)
        pooled: Tensor = self.pooler(last)
        output = BaseModelOutputWithPoolingAndNoAttention(
            last, pooled.reshape(pooled.shape[:2]), states
        )
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            self._folding.gradients.follow(last, pooled, *(states or ()))
        return wanted.finished(output)

    def _maps(self, pixels: Tensor, keep: bool) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """Compute the last map, and all of them if `keep`."""
        found = self._folded(pixels)
        if found is not None:
            tower, plan = found
            maps = tower(pixels, plan, keep)
            return maps[-1], tuple(maps) if keep else None
        stem = self.embeddings(pixels)
        # Not named where it is not wanted, as in transformers, whose modules take part here too.
        out = self.encoder(stem, output_hidden_states=True) if keep else self.encoder(stem)
        if keep and getattr(out, "hidden_states", None) is None:
            raise ValueError(
                f"The {type(self.encoder).__name__} in the place of the encoder returns no "
                "hidden_states, so output_hidden_states cannot be answered."
            )
        return out[0], tuple(out.hidden_states) if keep else None

    def _folded(self, pixels: Tensor) -> tuple[FoldedTower, Plan] | None:
        """Return what computes in the place of the modules; None where they must.

        Raises:
            Unavailable: if strict, where they must though kernels were asked for.
        """
        if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
            return None
        gradients = torch.is_grad_enabled() and (
            pixels.requires_grad or any(one.requires_grad for one in self.parameters())
        )
        plan = self.plan(gradients)
        if plan.by_reference:
            return None
        try:
            if (odd := obstacle(pixels, memory=False)) is not None:
                raise NotFoldable(f"pixel_values are {odd}")
            return self._folding.tower(self), plan
        except NotFoldable as why:
            tell_of_torch([str(why)], self.strict, False)
            return None

    def _checked(self, pixel_values: Any) -> Tensor:
        """Return the pixels in the model's precision and place."""
        if pixel_values is None:
            raise ValueError("You have to specify pixel_values; an image processor makes them.")
        if not isinstance(pixel_values, Tensor) or not pixel_values.is_floating_point():
            kind = getattr(pixel_values, "dtype", type(pixel_values).__name__)
            raise TypeError(
                f"pixel_values are a tensor of floating numbers, not {kind}; an image processor "
                "makes them, with return_tensors='pt'."
            )
        config: Any = self.config
        shape = tuple(pixel_values.shape)
        if len(shape) != 4 or shape[1] != config.num_channels:
            raise ValueError(
                f"pixel_values have the shape (batch, {config.num_channels}, height, width), not "
                f"{shape}."
            )
        config.check_image(*shape[2:])
        if pixel_values.is_meta:
            raise misplaced("pixel_values", pixel_values.device, self.device, type(self).__name__)
        return pixel_values.to(self.device, self.dtype)
