"""The modules of ALIGN's image tower, an EfficientNet, under transformers' names, in plain torch.

They say what the tower computes. `folding` computes the same from fewer operations while nothing of
them was touched. Maps are (batch, channels, height, width).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastbert.layers.methods import as_defined
from fastbert.layers.unfilled import weights_device
from fastbert.models.align.config import AlignVisionConfig
from fastbert.models.align.outputs import BaseModelOutputWithNoAttention
from fastbert.ops.activations import ACTIVATIONS, activate

_STEM_CHANNELS = 32

for _kind in (nn.AdaptiveAvgPool2d, nn.AvgPool2d, nn.MaxPool2d, nn.Sigmoid):
    as_defined(_kind)


@as_defined
class Convolution(nn.Conv2d):
    """torch's convolution; its settings are watched."""

    settings = ("stride", "padding", "dilation", "groups", "padding_mode")

    def __init__(self, channels: int, out: int, kernel_size: int, **rest: Any) -> None:
        super().__init__(channels, out, kernel_size, device=weights_device(), **rest)


@as_defined
class AlignVisionDepthwiseConv2d(Convolution):
    """A convolution of every channel by itself, without a bias."""

    def __init__(self, channels: int, kernel_size: int, stride: int, padding: str) -> None:
        super().__init__(
            channels,
            channels,
            kernel_size,
            stride=stride,
            padding=padding,
            groups=channels,
            bias=False,
        )


@as_defined
class BatchNorm(nn.BatchNorm2d):
    """torch's batch norm; its settings are watched."""

    settings = ("eps", "affine", "track_running_stats", "training")

    def __init__(self, channels: int, eps: float, momentum: float = 0.1) -> None:
        super().__init__(channels, eps, momentum, device=weights_device())


@as_defined
class ElementwiseActivation(nn.Module):
    """An activation of every element.

    Args:
        name: one of `fastbert.ops.activations`.

    Raises:
        ValueError: for a name that is not.
    """

    settings = ("name",)

    def __init__(self, name: str) -> None:
        super().__init__()
        if name not in ACTIVATIONS:
            raise ValueError(
                f"There is no activation {name!r} for hidden_act; the known ones are "
                f"{', '.join(sorted(ACTIVATIONS))}."
            )
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        """Compute the activation, x's shape and dtype."""
        return activate(x, self.name)

    def extra_repr(self) -> str:
        """Name the activation."""
        return self.name


@as_defined
class Padding(nn.ZeroPad2d):
    """torch's padding; its width is watched."""

    settings = ("padding",)


@as_defined
class AlignVisionEmbeddings(nn.Module):
    """The stem: a convolution of the pixels with stride 2."""

    def __init__(self, config: AlignVisionConfig) -> None:
        super().__init__()
        self.out_dim = config.width(_STEM_CHANNELS)
        self.padding = Padding((0, 1, 0, 1))
        self.convolution = Convolution(
            config.num_channels, self.out_dim, 3, stride=2, padding="valid", bias=False
        )
        self.batchnorm = BatchNorm(self.out_dim, config.batch_norm_eps, config.batch_norm_momentum)
        self.activation = ElementwiseActivation(config.hidden_act)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Compute the first map, of half the height and width."""
        features: Tensor = self.batchnorm(self.convolution(self.padding(pixel_values)))
        out: Tensor = self.activation(features)
        return out


@as_defined
class AlignVisionExpansionLayer(nn.Module):
    """A block's first part: more channels."""

    def __init__(self, config: AlignVisionConfig, channels: int, out: int) -> None:
        super().__init__()
        self.expand_conv = Convolution(channels, out, 1, padding="same", bias=False)
        # Alone among the norms it has torch's momentum.
        self.expand_bn = BatchNorm(out, config.batch_norm_eps)
        self.expand_act = ElementwiseActivation(config.hidden_act)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Compute the map with more channels."""
        out: Tensor = self.expand_act(self.expand_bn(self.expand_conv(hidden_states)))
        return out


@as_defined
class AlignVisionDepthwiseLayer(nn.Module):
    """A block's second part: a convolution of every channel, with stride 1 or 2."""

    settings = ("stride",)

    def __init__(
        self,
        config: AlignVisionConfig,
        channels: int,
        stride: int,
        kernel_size: int,
        symmetric: bool,
    ) -> None:
        super().__init__()
        self.stride = stride
        after = kernel_size // 2
        before = after if symmetric else after - 1
        self.depthwise_conv_pad = Padding((before, after, before, after))
        self.depthwise_conv = AlignVisionDepthwiseConv2d(
            channels, kernel_size, stride, "valid" if stride == 2 else "same"
        )
        self.depthwise_norm = BatchNorm(channels, config.batch_norm_eps, config.batch_norm_momentum)
        self.depthwise_act = ElementwiseActivation(config.hidden_act)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Compute the map, with half the height and width at stride 2."""
        if self.stride == 2:
            hidden_states = self.depthwise_conv_pad(hidden_states)
        out: Tensor = self.depthwise_act(self.depthwise_norm(self.depthwise_conv(hidden_states)))
        return out


@as_defined
class AlignVisionSqueezeExciteLayer(nn.Module):
    """A block's third part: every channel times a factor, which the mean of the map decides."""

    def __init__(self, config: AlignVisionConfig, block_channels: int, channels: int) -> None:
        super().__init__()
        squeezed = max(1, int(block_channels * config.squeeze_expansion_ratio))
        self.squeeze = nn.AdaptiveAvgPool2d(output_size=1)
        self.reduce = Convolution(channels, squeezed, 1, padding="same")
        self.expand = Convolution(squeezed, channels, 1, padding="same")
        self.act_reduce = ElementwiseActivation(config.hidden_act)
        self.act_expand = nn.Sigmoid()

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Compute the weighted map."""
        factors = self.act_reduce(self.reduce(self.squeeze(hidden_states)))
        factors = self.act_expand(self.expand(factors))
        weighted: Tensor = hidden_states * factors
        return weighted


@as_defined
class AlignVisionFinalBlockLayer(nn.Module):
    """A block's last part: fewer channels, and the skip around the block."""

    settings = ("apply_dropout",)

    def __init__(
        self, config: AlignVisionConfig, channels: int, out: int, dropout: float, skips: bool
    ) -> None:
        super().__init__()
        self.apply_dropout = skips
        self.project_conv = Convolution(channels, out, 1, padding="same", bias=False)
        self.project_bn = BatchNorm(out, config.batch_norm_eps, config.batch_norm_momentum)
        self.dropout = nn.Dropout(p=dropout)

    def forward(self, embeddings: Tensor, hidden_states: Tensor) -> Tensor:
        """Compute the block's result.

        Args:
            embeddings: what went into the block.
            hidden_states: what its other parts made of it.
        """
        out: Tensor = self.project_bn(self.project_conv(hidden_states))
        return self.dropout(out) + embeddings if self.apply_dropout else out


@as_defined
class AlignVisionBlock(nn.Module):
    """An inverted bottleneck: expansion, depthwise convolution, squeeze and excite, projection.

    Args:
        config: the tower's.
        channels: of what goes in.
        out: channels of what comes out.
        stage: its number, for kernel size and expansion.
        first: whether it is the stage's first block: it has the stage's stride, and no skip.
        number: of the block in the tower, counted from 0.
    """

    settings = ("expand_ratio",)

    def __init__(
        self,
        config: AlignVisionConfig,
        channels: int,
        out: int,
        stage: int,
        first: bool,
        number: int,
    ) -> None:
        super().__init__()
        self.expand_ratio = config.expand_ratios[stage]
        stride = config.strides[stage] if first else 1
        inner = channels * self.expand_ratio
        if self.expand_ratio != 1:
            self.expansion = AlignVisionExpansionLayer(config, channels, inner)
        self.depthwise_conv = AlignVisionDepthwiseLayer(
            config,
            inner,
            stride,
            config.kernel_sizes[stage],
            symmetric=number in config.depthwise_padding,
        )
        self.squeeze_excite = AlignVisionSqueezeExciteLayer(config, channels, inner)
        dropout = config.drop_connect_rate * number / config.num_hidden_layers
        self.projection = AlignVisionFinalBlockLayer(
            config, inner, out, dropout, skips=stride == 1 and not first
        )

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Compute the block's map."""
        inner = hidden_states
        if self.expand_ratio != 1:
            inner = self.expansion(inner)
        inner = self.squeeze_excite(self.depthwise_conv(inner))
        out: Tensor = self.projection(hidden_states, inner)
        return out


@as_defined
class AlignVisionEncoder(nn.Module):
    """All blocks, one after the other."""

    def __init__(self, config: AlignVisionConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        for stage, count in enumerate(config.num_block_repeats):
            channels = config.width(config.in_channels[stage])
            out = config.width(config.out_channels[stage])
            for index in range(config.repeats(count)):
                block = AlignVisionBlock(config, channels, out, stage, index == 0, len(self.blocks))
                self.blocks.append(block)
                channels = out

    def forward(
        self, hidden_states: Tensor, output_hidden_states: bool = False
    ) -> BaseModelOutputWithNoAttention:
        """Compute the last block's map; with output_hidden_states also all before it."""
        states = [hidden_states]
        for block in self.blocks:
            hidden_states = block(hidden_states)
            if output_hidden_states:
                states.append(hidden_states)
        return BaseModelOutputWithNoAttention(
            hidden_states, tuple(states) if output_hidden_states else None
        )
