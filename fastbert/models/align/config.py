"""Configurations of ALIGN: its text tower, its image tower, and both together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from fastbert.modeling.config import PreTrainedConfig, is_count

_STAGES = (
    "kernel_sizes",
    "in_channels",
    "out_channels",
    "strides",
    "num_block_repeats",
    "expand_ratios",
)


class AlignTextConfig(PreTrainedConfig):
    """Configuration of ALIGN's text tower; read from an ALIGN checkpoint, its `text_config`."""

    model_type = "align_text_model"
    base_config_key = "text_config"

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    position_embedding_type: str = "absolute"
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    use_cache: bool = True
    is_decoder: bool = False
    add_cross_attention: bool = False
    tie_word_embeddings: bool = True


class AlignVisionConfig(PreTrainedConfig):
    """Configuration of ALIGN's image tower; read from an ALIGN checkpoint, its `vision_config`.

    The tower is an EfficientNet: stages of blocks, whose widths and depths are those of the lists
    times width_coefficient and depth_coefficient. image_size is kept and read by nothing: images
    of any size go in.

    Attributes:
        depthwise_padding: numbers of the blocks, counted from 0, whose convolution of stride 2 is
            padded alike on all sides.
        hidden_dim: the window of the pooling at the end, no smaller than the map there.
        pooling_type: "mean" or "max".
        batch_norm_momentum: how much of a batch's own statistics enters the running ones.
        drop_connect_rate: the dropout of the last block's skip; it grows from 0 at the first.
        num_hidden_layers: blocks there are; it follows from the lists.
    """

    model_type = "align_vision_model"
    base_config_key = "vision_config"

    num_channels: int = 3
    image_size: int = 600
    width_coefficient: float = 2.0
    depth_coefficient: float = 3.1
    depth_divisor: int = 8
    kernel_sizes: list[int] = [3, 3, 5, 3, 5, 5, 3]
    in_channels: list[int] = [32, 16, 24, 40, 80, 112, 192]
    out_channels: list[int] = [16, 24, 40, 80, 112, 192, 320]
    depthwise_padding: list[int] = []
    strides: list[int] = [1, 2, 2, 2, 1, 2, 1]
    num_block_repeats: list[int] = [1, 2, 2, 3, 3, 4, 1]
    expand_ratios: list[int] = [1, 6, 6, 6, 6, 6, 6]
    squeeze_expansion_ratio: float = 0.25
    hidden_act: str = "swish"
    hidden_dim: int = 2560
    pooling_type: str = "mean"
    initializer_range: float = 0.02
    batch_norm_eps: float = 0.001
    batch_norm_momentum: float = 0.99
    drop_connect_rate: float = 0.2

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Derived, whatever a file says.
        kwargs.pop("num_hidden_layers", None)
        super().__init__(*args, **kwargs)
        for name in (*_STAGES, "depthwise_padding"):
            setattr(self, name, list(getattr(self, name)))
        self.num_hidden_layers = sum(self.repeats(count) for count in self.num_block_repeats)

    def repeats(self, count: int) -> int:
        """Return how many blocks a stage has.

        Args:
            count: its number in num_block_repeats.
        """
        return math.ceil(self.depth_coefficient * count)

    def width(self, channels: int) -> int:
        """Return how many channels there are where a list names a number of them.

        They are a multiple of depth_divisor, and not more than a tenth fewer than asked for.
        """
        divisor, wanted = self.depth_divisor, channels * self.width_coefficient
        rounded = max(divisor, int(wanted + divisor / 2) // divisor * divisor)
        return int(rounded + divisor if rounded < 0.9 * wanted else rounded)

    def check_buildable(self) -> None:
        """Refuse settings from which no tower can be built.

        Raises:
            ValueError: for lists of several lengths, numbers below 1 or an unknown pooling.
        """
        lengths = {name: len(getattr(self, name)) for name in _STAGES}
        if len(set(lengths.values())) != 1 or not lengths["strides"]:
            listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise ValueError(
                "The lists of an AlignVisionConfig have an entry for each stage, so they are "
                f"equally long and not empty; here their lengths are {listed}."
            )
        for name in _STAGES:
            for number in getattr(self, name):
                if not is_count(number) or number < 1:
                    raise ValueError(f"{name} holds whole numbers from 1 on, not {number!r}.")
        for name in ("num_channels", "depth_divisor", "hidden_dim"):
            number = getattr(self, name)
            if not is_count(number) or number < 1:
                raise ValueError(f"{name} is a whole number from 1 on, not {number!r}.")
        if any(stride > 2 for stride in self.strides):
            raise ValueError(f"strides are 1 or 2, not {self.strides}.")
        if self.pooling_type not in ("mean", "max"):
            raise ValueError(f"pooling_type is 'mean' or 'max', not {self.pooling_type!r}.")

    def check_image(self, height: int, width: int) -> None:
        """Refuse images that are too small for the tower, or too large for its pooling.

        Args:
            height: in pixels.
            width: in pixels.

        Raises:
            ValueError: for those.
        """
        for name, size in (("height", height), ("width", width)):
            last = self._map_size(size)
            if last < 1:
                raise ValueError(
                    f"Images with a {name} of {size} pixels are too small for this tower, whose "
                    "convolutions leave nothing of them; make them larger."
                )
            if last > self.hidden_dim:
                raise ValueError(
                    f"Images with a {name} of {size} pixels end as a map of {last}, but the "
                    f"pooling takes in no more than hidden_dim = {self.hidden_dim}; make the "
                    "images smaller, or hidden_dim larger."
                )

    def largest_image(self, most: int) -> int:
        """Return the most pixels of height and width that the tower takes, or `most` if none.

        Args:
            most: not to go beyond.
        """
        fitting = (s for s in range(most, 0, -1) if 1 <= self._map_size(s) <= self.hidden_dim)
        return next(fitting, most)

    def _map_size(self, size: int) -> int:
        """Return the height or width of the last map; 0 or less where none is left."""
        size, number = (size - 2) // 2 + 1, 0
        for kernel, stride, count in zip(
            self.kernel_sizes, self.strides, self.num_block_repeats, strict=True
        ):
            if stride == 2:
                after = kernel // 2
                before = after if number in self.depthwise_padding else after - 1
                size = (size + before + after - kernel) // 2 + 1
            if size < 1:
                return size
            number += self.repeats(count)
        return size


class AlignConfig(PreTrainedConfig):
    """Configuration of ALIGN: both towers, and what compares them.

    Args:
        text_config: an AlignTextConfig, its values, or None for its defaults.
        vision_config: an AlignVisionConfig, its values, or None for its defaults.
        projection_dim: width of the space in which texts and images are compared; that of the
            image tower's last stage.
        temperature_init_value: what a new model divides similarities by.
        initializer_range: standard deviation of new weights.
    """

    model_type = "align"
    sub_configs: ClassVar[dict[str, type]] = {
        "text_config": AlignTextConfig,
        "vision_config": AlignVisionConfig,
    }

    text_config: Any = None
    vision_config: Any = None
    projection_dim: int = 640
    temperature_init_value: float = 1.0
    initializer_range: float = 0.02

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        attention = kwargs.pop("attn_implementation", None)
        super().__init__(*args, **kwargs)
        for name, kind in self.sub_configs.items():
            given = getattr(self, name)
            if given is None or isinstance(given, Mapping):
                setattr(self, name, kind(**(given or {})))
        if attention is not None:
            self._attn_implementation = attention

    @classmethod
    def from_text_vision_configs(
        cls, text_config: AlignTextConfig, vision_config: AlignVisionConfig, **kwargs: Any
    ) -> AlignConfig:
        """Build the configuration of both towers, as transformers 4 did."""
        return cls(text_config=text_config, vision_config=vision_config, **kwargs)

    def get_text_config(self, **_: Any) -> PreTrainedConfig:
        """Return the configuration of the text tower."""
        text: PreTrainedConfig = self.text_config
        return text

    def check_buildable(self) -> None:
        """Refuse what is no pair of towers.

        Raises:
            TypeError: for a part of another kind.
            ValueError: for images and texts in spaces of different widths.
        """
        for name, kind in self.sub_configs.items():
            given = getattr(self, name)
            if not isinstance(given, kind):
                raise TypeError(
                    f"{name} of an AlignConfig is of type {kind.__name__}, not "
                    f"{type(given).__name__}."
                )
        vision: AlignVisionConfig = self.vision_config
        vision.check_buildable()
        last = vision.width(vision.out_channels[-1])
        if last != self.projection_dim:
            raise ValueError(
                f"Images end as vectors of {last} numbers, the width of the last stage, and texts "
                f"as ones of projection_dim = {self.projection_dim}, so they cannot be compared; "
                "make the two equal."
            )
