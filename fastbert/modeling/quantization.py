"""int8 weights: how they are chosen, and which modules hold them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from fastbert.layers.block import Block
from fastbert.layers.linear import Int8Linear, Linear, Projection
from fastbert.runtime.clipping import best_scales, levels as levels_of
from fastbert.runtime.pages import passing

if TYPE_CHECKING:
    from fastbert.modeling.base import PreTrainedModel

Model = TypeVar("Model", bound="PreTrainedModel")

METHOD = "fastbert"
_LARGEST = 127
# Fractions of the largest magnitude at which a channel may be clipped. The best one is chosen for
# each channel; below a half the error of the clipped weights always dominates.
_FRACTIONS = tuple(1.0 - step / 40 for step in range(17))
# A channel's factor is at most this much smaller, or its inverse larger, than the mean.
_LEAST = 1.0 / 64
# Elements that are summed or quantised at once; what comes of sums depends on the former. Several
# temporaries of this size stand beside each other, and the allocator keeps what it once had.
_SUMMED = 1 << 21
_QUANTISED = 1 << 15


@dataclass(frozen=True)
class QuantizationConfig:
    """How the projections of a model's layers are quantised.

    Attributes:
        load_in_8bit: int8 weights with one scale per output channel. Encoders quantise
            activations per token as they come, and embeddings, norms, poolers and heads keep their
            precision. Decoders keep 16 bits of activations, and score the vocabulary by an int8
            head too, which is no longer tied to the embeddings. Nothing is calibrated: what is
            chosen is chosen from the weights.
    """

    load_in_8bit: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Return what stands in config.json.

        Not `load_in_8bit`: transformers takes that for bitsandbytes, whatever the method says.
        """
        return {"quant_method": METHOD, "bits": 8} if self.load_in_8bit else {}


def as_quantization(value: Any) -> QuantizationConfig | None:
    """Return what a caller's `quantization` means: None, "int8", a QuantizationConfig, or its dict.

    Raises:
        ValueError: for anything else, or another library's method.
    """
    if value is None or (isinstance(value, QuantizationConfig) and not value.load_in_8bit):
        return None
    if isinstance(value, QuantizationConfig):
        return value
    if value == "int8":
        return QuantizationConfig()
    if isinstance(value, dict) and value.get("quant_method") == METHOD:
        if value.get("bits", 8) != 8:
            raise ValueError(
                f"The quantization_config asks for bits={value['bits']!r}, but fastbert's weights "
                "have 8; it belongs to another version."
            )
        # Files of earlier versions say load_in_8bit.
        return QuantizationConfig() if value.get("load_in_8bit", True) else None
    method = value.get("quant_method") if isinstance(value, dict) else None
    if method is not None:
        raise ValueError(
            f"The checkpoint was quantised with {method!r}, says its quantization_config, and only "
            "that library reads such weights; load the original and pass quantization='int8'."
        )
    if getattr(value, "load_in_8bit", False) is True:
        return QuantizationConfig()
    raise ValueError(
        "quantization is None, 'int8' or fastbert.QuantizationConfig(load_in_8bit=True); "
        f"{value!r} is none of them."
    )


@dataclass(frozen=True)
class Group:
    """Projections of the same rows, which are quantised once for all of them.

    Attributes:
        parts: the projections.
        judge: the one whose columns say how much each input channel matters; None where the rows
            are quantised as they are.
        norm: the LayerNorm whose weight says how large each channel is, None where none does.
        repeats: whether columns with large weights are repeated.
        wide_rows: whether the rows keep 16 bits, rather than 8.
    """

    parts: tuple[Projection, ...]
    judge: Projection | None = None
    norm: nn.Module | None = None
    repeats: bool = True
    wide_rows: bool = False

    @property
    def repeated_columns(self) -> int:
        """One column in 64, in steps of 16, so that rows of weights stay aligned."""
        return -(-self.parts[0].in_features // 1024) * 16 if self.repeats else 0


def encoder_groups(blocks: Iterable[Block]) -> Iterator[Group]:
    """Yield what int8 replaces in an encoder: its layers' projections, by the rows they share.

    Errors of queries and keys hardly show behind the softmax, so that values judge for them.
    Outputs of attention and of the activation need no factor (figures: docs/lab/quantisation.md).

    Args:
        blocks: the layers.
    """
    for block in blocks:
        before_up = block.attention_norm
        yield Group((block.q, block.k, block.v), block.v)
        yield Group((block.out,), repeats=False)
        if block.cross is not None:
            yield Group((block.cross.q,), block.cross.q)
            yield Group((block.cross.k, block.cross.v), block.cross.v)
            yield Group((block.cross.out,), repeats=False)
            before_up = block.cross.norm
        yield Group((block.up,), block.up, block.output_norm if block.pre_norm else before_up)
        yield Group((block.down,))


@dataclass(frozen=True)
class Columns:
    """How the rows of a group are changed before they are quantised.

    Attributes:
        factor: float32 (K,), multiplies them; the weights are divided by it. None for none.
        copies: int64 (K,), how often each column stands in the weights.
    """

    factor: Tensor | None
    copies: Tensor

    @property
    def repeated(self) -> Tensor:
        """int32: the columns that stand behind the others, once for each copy but the first."""
        return torch.repeat_interleave(self.copies - 1).to(torch.int32)


def columns_of(group: Group, weights: Sequence[Tensor]) -> Columns:
    """Choose factor and copies from the weights alone.

    An 8-bit step is the same for all channels of a row. It costs channel j its weights' norm w_j
    times the step, so that rows times w_j are rounded where it matters equally; where a LayerNorm's
    weight g_j tells how large the channel gets, w_j^(1/4) / g_j^(3/4) divides the difficulty
    between rows and weights (both exponents 1/2: the same cosine within 3 %). Copies go to the
    columns with the largest weight relative to its row, for a few such
    weights would coarsen the step of all others in their row.

    Args:
        group: the projections.
        weights: (N, K) of each of its parts, floating.
    """
    judge = weights[0] if group.judge is None else weights[group.parts.index(group.judge)]
    factor = None
    if group.judge is not None:
        factor = _floored(_column_norms(judge))
        if group.norm is not None:
            gamma: Any = group.norm.weight
            factor = factor**0.25 / _floored(gamma.detach().float().abs()) ** 0.75
    copies = torch.ones(judge.shape[1], dtype=torch.int64, device=judge.device)
    if group.repeated_columns:
        peaks = torch.stack([_peaks(weight, factor) for weight in weights]).amax(dim=0)
        for _ in range(group.repeated_columns):
            copies[torch.argmax(peaks / copies.to(torch.float32))] += 1
        if group.norm is not None and factor is not None:
            factor = factor / copies.to(torch.float32).sqrt()
    return Columns(factor, copies)


def _floored(sizes: Tensor) -> Tensor:
    """Divide sizes by their mean.

    A size that is tiny (a dead channel) or not finite becomes ordinary enough that dividing by it
    does no harm.
    """
    sizes = torch.nan_to_num(sizes, 0.0, 0.0, 0.0)
    mean = sizes.square().mean().sqrt()
    if float(mean) == 0.0:
        return torch.ones_like(sizes)
    return (sizes / mean).clamp(min=_LEAST, max=1.0 / _LEAST)


def _chunks(
    weight: Tensor, factor: Tensor | None, elements: int = _QUANTISED
) -> Iterator[tuple[slice, Tensor]]:
    """Yield the rows of a weight in float32, divided by the factor, so many elements at a time."""
    step = max(1, elements // max(weight.shape[1], 1))
    for start in range(0, weight.shape[0], step):
        rows = weight[start : start + step].to(torch.float32)
        yield slice(start, start + rows.shape[0]), rows if factor is None else rows / factor


def _column_norms(weight: Tensor) -> Tensor:
    sums = []
    for _, rows in _chunks(weight, None, _SUMMED):
        squares = passing(rows.shape, torch.float32, rows.device)
        sums.append(torch.square(rows, out=squares).sum(dim=0))
    return torch.stack(sums).sum(dim=0).sqrt()


def _peaks(weight: Tensor, factor: Tensor | None) -> Tensor:
    """Find each column's largest magnitude relative to the root mean square of its row."""
    found = torch.zeros(weight.shape[1], dtype=torch.float32, device=weight.device)
    for _, rows in _chunks(weight, factor):
        size = rows.square().mean(dim=1, keepdim=True).sqrt()
        peaks = rows.abs().div_(size).nan_to_num_(0.0, 0.0, 0.0)
        torch.maximum(found, peaks.amax(dim=0), out=found)
    return found


def quantize_weight(
    weight: Tensor, columns: Columns | None = None, brief: bool = False
) -> tuple[Tensor, Tensor]:
    """Round a weight to symmetric int8 with one scale a row.

    Each row is clipped where its squared error is least.

    A row with a value that is not finite gets the scale NaN, so that the fault shows in the output.

    Args:
        weight: (N, K), floating.
        columns: what is done to the rows it meets; None for nothing.
        brief: whether the result is needed for a moment only.

    Returns:
        int8 (N, K + repeats) in -127..127 and float32 (N,) scales: weight / factor is about
        scale times the sum of q over the copies of each column.
    """
    repeats = 0 if columns is None else int(columns.copies.sum()) - weight.shape[1]
    columns_held = weight.shape[1] + repeats
    make = passing if brief else torch.empty
    q = make((weight.shape[0], columns_held), dtype=torch.int8, device=weight.device)
    scales = torch.empty(weight.shape[0], dtype=torch.float32, device=weight.device)
    largest = torch.full(
        (weight.shape[1],), float(_LARGEST), dtype=torch.float32, device=weight.device
    )
    if columns is not None and repeats:
        largest = columns.copies.to(torch.float32) * float(_LARGEST)
    for span, rows in _chunks(weight, None if columns is None else columns.factor):
        scale = best_scales(rows, largest, _FRACTIONS)
        levels = torch.nan_to_num(levels_of(rows, scale, largest))
        if columns is not None and repeats:
            levels = _spread(levels, columns)
        q[span] = levels.to(torch.int8)
        scales[span] = scale
    return q, scales


def _spread(levels: Tensor, columns: Columns) -> Tensor:
    """Spread levels (rows, K) over the copies of each column.

    The t-th copy gets floor((level + t) / copies); they add up to the level (Hermite's identity).
    """
    repeated = columns.repeated.long()
    copies = columns.copies.to(levels.dtype)
    # A copy's number among those of its column, 1, 2, ...; they stand next to one another.
    starts = torch.cumsum(columns.copies - 1, dim=0) - (columns.copies - 1)
    number = torch.arange(repeated.numel(), device=levels.device) - starts[repeated] + 1
    first = torch.floor(levels / copies)
    others = torch.floor((levels[:, repeated] + number) / copies[repeated])
    return torch.cat([first, others], dim=1)


def _names(model: nn.Module) -> dict[int, str]:
    return {id(module): name for name, module in model.named_modules()}


def replace_linears(model: PreTrainedModel) -> None:
    """Put an empty Int8Linear in the place of every Linear that int8 replaces."""
    names = _names(model)
    for group in list(model.int8_groups()):
        for part in group.parts:
            # A layer may stand in several groups' place only once; shared ones are done already.
            if isinstance(part, Linear) and id(part) in names:
                with torch.device(part.weight.device):
                    _replace(model, names[id(part)], _empty(part, group))


def _empty(part: Linear, group: Group) -> Int8Linear:
    return Int8Linear(
        part.in_features,
        part.out_features,
        part.bias is not None,
        factor=group.judge is not None,
        repeats=group.repeated_columns,
        wide_rows=group.wide_rows,
    )


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, module)


def _check_whole(group: Group, floating: int) -> None:
    if floating != len(group.parts):
        raise ValueError(
            "Of projections that read the same rows, some are stored in int8 and some are not; "
            "save the model again as a whole."
        )


@torch.no_grad()
def fill(model: PreTrainedModel, weight_of: Callable[[Int8Linear], Tensor | None]) -> None:
    """Quantise the weights of a model whose projections are Int8Linear, group by group.

    Args:
        model: as replace_linears leaves it, its other parameters in place.
        weight_of: the floating weight of a projection, None where it keeps what it holds.
    """
    for group in model.int8_groups():
        parts = [part for part in group.parts if isinstance(part, Int8Linear)]
        weights = [weight_of(part) for part in parts]
        given = [weight for weight in weights if weight is not None]
        if not given:
            continue
        _check_whole(group, len(given))
        columns = columns_of(group, given)
        for part, weight in zip(parts, given, strict=True):
            part.qweight, part.weight_scale = quantize_weight(weight, columns)
            if part.factor is not None:
                part.factor = columns.factor
            if part.repeated is not None:
                part.repeated = columns.repeated


@dataclass(frozen=True)
class _Rounded:
    """The int8 weight of a layer, made from its floating one whenever it is asked for.

    Attributes:
        held: the layer's parameters, whose "weight" is read where it stands then.
        columns: how its columns are changed, chosen before.
    """

    held: Mapping[str, Any]
    columns: Columns

    def __call__(self, brief: bool) -> tuple[Tensor, Tensor]:
        # What is kept may be used outside of inference mode.
        with torch.inference_mode(False), torch.no_grad():
            return quantize_weight(self.held["weight"].detach(), self.columns, brief)


@torch.no_grad()
def quantize_as_packed(model: Model) -> Model:
    """Let a model that is in memory compute its layers in int8, and hold no int8 weights.

    They are made from the floating ones, which somebody else holds, each time that they are packed.
    How columns are changed is chosen at once.

    Args:
        model: changed in place.

    Returns:
        The same model, whose layers hold Int8Linear.
    """
    names = _names(model)
    for group in list(model.int8_groups()):
        parts = [part for part in group.parts if isinstance(part, Linear)]
        if not parts:
            continue
        _check_whole(group, len(parts))
        columns = columns_of(group, [part.weight.detach() for part in parts])
        for part in parts:
            with torch.device("meta"):
                int8 = _empty(part, group)
            int8.make_from(_Rounded(part._parameters, columns))
            if part.bias is not None:
                int8.bias = nn.Parameter(part.bias.detach(), requires_grad=False)
            if int8.factor is not None:
                int8.factor = columns.factor
            if int8.repeated is not None:
                int8.repeated = columns.repeated
            _replace(model, names[id(part)], int8)
    model.config.quantization_config = QuantizationConfig().to_dict()
    return model


def quantize(model: Model) -> Model:
    """Quantise the layers of a model that is already in memory.

    Args:
        model: a model; changed in place.

    Returns:
        The same model, whose layers hold Int8Linear.
    """
    for module in quantize_as_packed(model).modules():
        if isinstance(module, Int8Linear):
            module.hold()
    return model
