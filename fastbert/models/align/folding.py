"""The image tower with its batch norms folded into the convolutions, while nothing was touched.

A norm in eval mode multiplies and shifts channels, and so does the convolution before it: one of
them does both. The folded weights follow the modules: modules, settings and hooks are compared as
`fastbert.modeling.module_table` does, all tensors by stamp, and by their bytes where torch does not
count writes. A native watch says in a hundredth of that time when nothing was touched at all.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastbert.engine.encoder_cache import watch_of
from fastbert.kernels import native
from fastbert.layers.hooks import GLOBAL_HOOKS
from fastbert.layers.linear import Prepacked
from fastbert.layers.methods import methods
from fastbert.layers.replicas import is_replica
from fastbert.modeling.module_table import Built, record, why_changed
from fastbert.models.align.vision_modules import (
    AlignVisionBlock,
    AlignVisionDepthwiseLayer,
    AlignVisionEmbeddings,
    AlignVisionEncoder,
    BatchNorm,
    Convolution,
)
from fastbert.ops.operands import obstacle
from fastbert.runtime.plan import Plan
from fastbert.runtime.versions import Contents, Gradients, Kept, stamp, uncounted

# float16 has too little range for weights times factors.
_DTYPES = (torch.float32, torch.bfloat16, torch.float64)


class NotFoldable(Exception):
    """Why the modules must compute a pass themselves, as a clause."""


@dataclass
class Gemm:
    """A 1x1 convolution: (rows, channels) times weight.T, and a bias."""

    weight: Tensor
    bias: Tensor
    packed: Prepacked

    def __call__(
        self, x: Tensor, plan: Plan, activation: str = "none", residual: Tensor | None = None
    ) -> Tensor:
        """Compute activation(x @ weight.T + bias) + residual on rows."""
        packed = self.packed.get("linear", self.weight, plan)
        out: Tensor = plan.linear(x, self.weight, self.bias, activation, residual, packed)
        return out


@dataclass
class Spatial:
    """A convolution with a window, of channels-last maps."""

    weight: Tensor
    bias: Tensor
    pad: tuple[int, ...] | None
    stride: Any
    padding: Any
    groups: int

    def __call__(self, x: Tensor) -> Tensor:
        """Compute the next map."""
        if self.pad is not None:
            x = F.pad(x, self.pad)
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, 1, self.groups)


@dataclass
class Depthwise:
    """A convolution of each channel by itself, of maps as rows of channels.

    Attributes:
        weight: (kernel, kernel, channels).
        before: zeros above and to the left of a map.
        after: zeros below and to the right.
    """

    weight: Tensor
    bias: Tensor
    stride: int
    before: int
    after: int

    def __call__(self, x: Tensor, plan: Plan, activation: str) -> tuple[Tensor, Tensor]:
        """Compute the next map (batch, height, width, channels), and the means of its channels."""
        out, means = plan.depthwise_conv(
            x.permute(0, 2, 3, 1), self.weight, self.bias, self.stride, self.before, self.after,
            activation,
        )  # fmt: skip
        return out, means.to(x.dtype)


@dataclass
class Block:
    """One block; `expand` is None where its channels stay as many."""

    expand: Gemm | None
    depthwise: Depthwise
    reduce: Gemm
    factors: Gemm
    project: Gemm
    skips: bool


class FoldedTower:
    """What is computed in place of the stem and the blocks.

    Args:
        embeddings: the stem.
        blocks: the blocks.

    Raises:
        NotFoldable: for weights that cannot be folded without another result.
    """

    def __init__(self, embeddings: AlignVisionEmbeddings, blocks: nn.ModuleList) -> None:
        self.activation = embeddings.activation.name
        pad = embeddings.padding.padding
        self.stem = _spatial(embeddings.convolution, embeddings.batchnorm, tuple(pad))
        self.blocks = [_block(block) for block in blocks]  # type: ignore[arg-type]

    def __call__(self, pixels: Tensor, plan: Plan, keep: bool) -> list[Tensor]:
        """Compute the last block's map; with `keep` all maps, the stem's first.

        Args:
            pixels: (batch, channels, height, width).
            plan: the backends of the 1x1 convolutions.
            keep: whether all are wanted.
        """
        hidden = self.stem(pixels.contiguous(memory_format=torch.channels_last))
        hidden = self._activated(hidden, plan)
        states = [hidden]
        for block in self.blocks:
            hidden = self._block(block, hidden, plan)
            states = [*states, hidden] if keep else [hidden]
        return states

    def _activated(self, x: Tensor, plan: Plan) -> Tensor:
        return _as_map(plan.bias_act(_as_rows(x), None, self.activation), x)

    def _block(self, block: Block, hidden: Tensor, plan: Plan) -> Tensor:
        inner = hidden
        if block.expand is not None:
            inner = _as_map(block.expand(_as_rows(inner), plan, self.activation), inner)
        # From here to the projection by kernels alone: torch's own threads would go on spinning
        # where the kernels' next ones compute, which took a third of a pass on two cores.
        maps, means = block.depthwise(inner, plan, self.activation)
        gates = block.factors(block.reduce(means, plan, self.activation), plan)
        rows = plan.channel_gate(maps, gates).flatten(0, 2)
        residual = _as_rows(hidden) if block.skips else None
        out = block.project(rows, plan, "none", residual)
        return out.view(*maps.shape[:3], out.shape[1]).permute(0, 3, 1, 2)


def _as_rows(x: Tensor) -> Tensor:
    """View a channels-last map as rows (batch * height * width, channels)."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _as_map(rows: Tensor, like: Tensor) -> Tensor:
    """View rows as a channels-last map of the batch, height and width of another."""
    batch, _, height, width = like.shape
    return rows.view(batch, height, width, rows.shape[1]).permute(0, 3, 1, 2)


def _block(block: AlignVisionBlock) -> Block:
    excite, last, layer = block.squeeze_excite, block.projection, block.depthwise_conv
    expand = None
    if block.expand_ratio != 1:
        expand = _gemm(block.expansion.expand_conv, block.expansion.expand_bn)
    return Block(
        expand,
        _depthwise(layer),
        _gemm(excite.reduce),
        _gemm(excite.expand),
        _gemm(last.project_conv, last.project_bn),
        last.apply_dropout,
    )


def _depthwise(layer: AlignVisionDepthwiseLayer) -> Depthwise:
    weight, bias = _folded(layer.depthwise_conv, layer.depthwise_norm)
    # At stride 1 the layer's padding is not used: its convolution keeps the size of the map.
    around = weight.shape[-1] - 1
    before, after = around // 2, around - around // 2
    if layer.stride == 2:
        before, after = layer.depthwise_conv_pad.padding[:2]
    return Depthwise(weight[:, 0].permute(1, 2, 0).contiguous(), bias, layer.stride, before, after)


def _gemm(convolution: Convolution, norm: BatchNorm | None = None) -> Gemm:
    weight, bias = _folded(convolution, norm)
    return Gemm(weight.flatten(1), bias, Prepacked())


def _spatial(convolution: Convolution, norm: BatchNorm, pad: tuple[int, ...] | None) -> Spatial:
    weight, bias = _folded(convolution, norm)
    return Spatial(
        weight.contiguous(memory_format=torch.channels_last),
        bias,
        pad,
        convolution.stride,
        convolution.padding,
        convolution.groups,
    )


def _folded(convolution: Convolution, norm: BatchNorm | None) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a convolution with a norm behind it, in the weight's dtype.

    Raises:
        NotFoldable: where they are not there, or not finite.
    """
    weight = convolution.weight.detach()
    held = convolution.bias
    bias = weight.new_zeros(weight.shape[0]) if held is None else held.detach()
    if norm is None:
        return weight.clone(), bias.clone()
    parts = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    if any(part is None for part in parts):
        raise NotFoldable("a batch norm has no weight, bias or statistics")
    scale, shift, mean, variance = (part.detach().double() for part in parts)  # type: ignore[union-attr]
    factor = scale / torch.sqrt(variance + norm.eps)
    new_weight = (weight.double() * factor[:, None, None, None]).to(weight.dtype)
    new_bias = (shift + (bias.double() - mean) * factor).to(weight.dtype)
    if not (bool(torch.isfinite(new_weight).all()) and bool(torch.isfinite(new_bias).all())):
        raise NotFoldable("a batch norm's factors are not finite")
    return new_weight, new_bias


@dataclass(frozen=True)
class _Kept:
    """What was folded from which weights: a tower, or why there is none."""

    stamps: list[tuple[Any, ...]]
    contents: Contents
    tower: FoldedTower | None
    why: str


class Folding(Kept):
    """The folded tower of a model, and how it notices that the modules are no longer what it was.

    Args:
        built: what stood in the model when it was built, by the paths of its parts; see `built`.

    Attributes:
        gradients: counts the backward passes that may reach the weights.
    """

    def __init__(self, built: dict[str, dict[str, Built]]) -> None:
        self.gradients = Gradients()
        self._built = built
        self._kept: _Kept | None = None
        # Of the model whose tower is kept; None where a look by Python is needed every time.
        self._watch: tuple[weakref.ref[Any], native.library.Watch] | None = None

    def clear(self) -> None:
        """Forget what was folded."""
        self._kept = self._watch = None

    def tower(self, model: Any) -> FoldedTower:
        """Return the folded tower, folded again where a weight changed.

        Args:
            model: the image tower.

        Raises:
            NotFoldable: where the modules must compute the pass.
        """
        if (tower := self._untouched(model)) is not None:
            return tower
        if model.training:
            raise NotFoldable("batch norms in training mode take the batch's statistics")
        for path, tree in self._built.items():
            why = _changed(model, path, tree)
            if why is not None:
                raise NotFoldable(why)
        if len(model.encoder.blocks) != len(self._built) - len(_PARTS):
            raise NotFoldable(f"there are {len(model.encoder.blocks)} blocks now")
        if is_replica(model):
            raise NotFoldable("a replica lives for one pass only")
        kept = self._current(model)
        if kept.tower is None:
            raise NotFoldable(kept.why)
        return kept.tower

    def _untouched(self, model: Any) -> FoldedTower | None:
        """Return the tower that is kept where nobody touched the model since; else None."""
        kept, watch = self._kept, self._watch
        if kept is None or watch is None or model.training or is_replica(model):
            return None
        if any(GLOBAL_HOOKS) or watch[0]() is not model or not watch[1].unchanged(True):
            return None
        return kept.tower if kept.contents.same(False) else None

    def _look(self, model: nn.Module, tensors: Sequence[Tensor]) -> None:
        """Begin to watch the model, where versions tell of every write to its tensors."""
        self._watch = None
        modules = [module for _, module in model.named_modules()]
        found = methods(modules)
        if uncounted(tensors) or native.reason() is not None or not found.hold():
            return
        copied = {id(tensor) for tensor in tensors}
        self._watch = weakref.ref(model), watch_of(model, modules, found, copied, ("training",))

    def _current(self, model: Any) -> _Kept:
        tensors = [*model.parameters(), *model.buffers()]
        _check_foldable(tensors)
        stamps, kept = [stamp(tensor) for tensor in tensors], self._kept
        if kept is not None and kept.stamps == stamps and kept.contents.same(uncounted(tensors)):
            self._look(model, tensors)
            return kept
        names = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
        contents = Contents(tensors, self.gradients, names)
        tower, reason = None, ""
        try:
            with torch.inference_mode(False), torch.no_grad():
                tower = FoldedTower(model.embeddings, model.encoder.blocks)
        except NotFoldable as why:
            reason = str(why)
        self._kept = _Kept(stamps, contents, tower, reason)
        self._look(model, tensors)
        return self._kept

    def __deepcopy__(self, memo: dict[int, Any]) -> Folding:
        return Folding(self._built)

    def __reduce__(self) -> tuple[Any, ...]:
        return (Folding, (self._built,))


# Parts that are compared whole, beside the blocks; of the encoder only itself and its list.
_PARTS = ("embeddings", "encoder")


def built(model: nn.Module) -> dict[str, dict[str, Built]]:
    """Record what stands in an image tower, for Folding."""
    found: Any = model
    trees = {"embeddings": record(found.embeddings)}
    trees["encoder"] = {"": Built(type(found.encoder), {}, ())}
    for index, block in enumerate(found.encoder.blocks):
        trees[f"encoder.blocks.{index}"] = record(block)
    return trees


def _changed(model: nn.Module, path: str, tree: dict[str, Built]) -> str | None:
    found: Any = model
    for name in path.split("."):
        found = found._modules.get(name) if isinstance(found, nn.Module) else None
    if found is None:
        return f"{path} is gone"
    if found.training:
        return f"{path} is in training mode"
    if type(found) is AlignVisionEncoder and type(found.blocks) is not nn.ModuleList:
        return f"{path}.blocks is no nn.ModuleList"
    return why_changed(found, tree, path)


def _check_foldable(tensors: list[Tensor]) -> None:
    """Refuse weights that are not plain numbers of one kind in one place.

    Raises:
        NotFoldable: for those.
    """
    odd = obstacle(*tensors, memory=False)
    if odd is not None:
        raise NotFoldable(f"a weight is {odd}")
    floating = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    if len(floating) != 1 or not floating < set(_DTYPES):
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in floating))
        raise NotFoldable(f"batch norms in {names} are not folded")
    if len({tensor.device for tensor in tensors}) != 1 or tensors[0].is_meta:
        raise NotFoldable("the weights lie in several places, or nowhere")
