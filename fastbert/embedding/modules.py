"""The modules of a sentence encoder behind its transformer, by sentence-transformers' names.

They read and write features by name, one module after the other, as modules.json lists them. A
feature has one row for each token, packed, or one for each text; hidden states are never padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastbert.embedding.activations import ALONG_ROWS, activated, fused
from fastbert.embedding.pooling import check_modes, pool
from fastbert.kernels.openmp import on_one_thread
from fastbert.layers.linear import Linear, alone, project
from fastbert.layers.norm import LayerNorm
from fastbert.ops.activations import unsupported_activation
from fastbert.runtime.plan import Plan

TOKENS = "token_embeddings"
SENTENCE = "sentence_embedding"
# A feature that pooling by `cls` takes in place of the first token, where a module made it.
CLS = "cls_token_embeddings"
# torch.nn.LayerNorm's own, which modules of sentence-transformers have.
NORM_EPS = 1e-5


@dataclass(frozen=True)
class Shape:
    """What is known of a feature before there is a batch.

    Attributes:
        by_token: whether it has a row for each token, rather than for each text.
        width: values in a row.
    """

    by_token: bool
    width: int


@dataclass
class Features:
    """What the modules have computed for one batch.

    Attributes:
        values: by name, (tokens, width) or float32 (texts, width).
        cu_seqlens: where the texts begin among the tokens, as in PackedBatch.
        plan: the backends of the pass.
        prompt_length: tokens of the prompt at the beginning of every text.
    """

    values: dict[str, Tensor]
    cu_seqlens: Tensor
    plan: Plan
    prompt_length: int = 0


class SentenceModule(nn.Module):
    """A step from the features of a batch to more features."""

    def shapes(self, known: dict[str, Shape]) -> None:
        """Add what the module makes to the shapes of the features before it.

        Raises:
            ValueError: when the module does not fit what comes before it.
        """
        raise NotImplementedError

    def forward(self, features: Features) -> None:
        """Compute the module's feature and put it into `features`."""
        raise NotImplementedError


def shapes_of(modules: Sequence[SentenceModule], hidden: int) -> dict[str, Shape]:
    """Return the features that modules make of hidden states.

    Args:
        modules: in the order in which they run.
        hidden: the width of the transformer's hidden states.

    Raises:
        ValueError: when a module does not fit those before it, or none makes a vector.
    """
    known = {TOKENS: Shape(True, hidden)}
    for index, module in enumerate(modules, start=1):
        try:
            module.shapes(known)
        except ValueError as error:
            raise ValueError(f"Module {index} ({type(module).__name__}) {error}") from None
    made = known.get(SENTENCE)
    if made is None or made.by_token or not known[TOKENS].by_token:
        raise ValueError(
            "The modules of this sentence encoder make no vector for a text; a Pooling behind the "
            "Transformer makes one of its token_embeddings."
        )
    return known


def _input(known: dict[str, Shape], name: str) -> Shape:
    if name not in known:
        raise ValueError(f"reads {name!r}, but the modules before it make {', '.join(known)}.")
    return known[name]


class Pooling(SentenceModule):
    """One vector for each text, from the hidden states of its tokens.

    Args:
        modes: names from `fastbert.embedding.pooling.MODES`, concatenated in this order.
        include_prompt: whether the tokens of the prompt are pooled too.
    """

    def __init__(self, modes: Sequence[str] = ("mean",), include_prompt: bool = True) -> None:
        super().__init__()
        self.modes = check_modes(modes)
        self.include_prompt = include_prompt

    def shapes(self, known: dict[str, Shape]) -> None:
        """Add the vectors of the texts."""
        tokens = _input(known, TOKENS)
        first = known.get(CLS, tokens)
        width = sum(first.width if mode == "cls" else tokens.width for mode in self.modes)
        known[SENTENCE] = Shape(False, width)

    def forward(self, features: Features) -> None:
        """Pool the hidden states as they are after the modules before."""
        skipped = 0 if self.include_prompt else features.prompt_length
        rows, made = features.values[TOKENS], features.values.get(CLS)

        def by(modes: Sequence[str]) -> Tensor:
            return pool(rows, features.cu_seqlens, modes, features.plan, skipped)

        if made is None or "cls" not in self.modes:
            features.values[SENTENCE] = by(self.modes)
        else:
            parts = [made if mode == "cls" else by([mode]) for mode in self.modes]
            features.values[SENTENCE] = torch.cat(parts, dim=1)


class Dense(SentenceModule):
    """activation(x @ weight.T + bias), plus x or its own projection where there is a residual.

    Args:
        in_features: values of a row that goes in.
        out_features: values of a row that comes out.
        bias: whether there is a bias.
        activation_function: a module of torch; None for none.
        module_input_name: the feature that is read.
        module_output_name: the feature that is written; None for the one that is read.
        use_residual: whether the input is added; `residual.weight` projects it where the widths
            differ.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        activation_function: nn.Module | None = None,
        module_input_name: str = SENTENCE,
        module_output_name: str | None = None,
        use_residual: bool = False,
    ) -> None:
        super().__init__()
        self.linear = Linear(in_features, out_features, bias)
        self.activation_function = activation_function or nn.Identity()
        self.module_input_name = module_input_name
        self.module_output_name = module_output_name or module_input_name
        self.use_residual = use_residual
        if use_residual and in_features != out_features:
            self.residual: Linear | None = Linear(in_features, out_features, False)
        else:
            self.residual = None

    def shapes(self, known: dict[str, Shape]) -> None:
        """Add the projected feature."""
        given = _input(known, self.module_input_name)
        if given.width != self.linear.in_features:
            raise ValueError(
                f"takes {self.linear.in_features} values, but {self.module_input_name!r} has "
                f"{given.width}; the folder's files do not belong together."
            )
        if given.by_token and isinstance(self.activation_function, ALONG_ROWS):
            name = type(self.activation_function).__name__
            raise ValueError(f"has the activation {name} on tokens, which mixes texts in torch.")
        sample = self.linear.weight.new_zeros(1, self.linear.out_features)
        width = self.activation_function(sample).shape[-1]
        if self.use_residual and width != self.linear.out_features:
            raise ValueError("adds a residual of another width than its activation makes.")
        known[self.module_output_name] = Shape(given.by_token, width)

    def torch_parts(self) -> list[str]:
        """Name what no kernel computes."""
        projections = [part for part in (self.linear, self.residual) if part is not None]
        found = [
            f"a Dense calls the {type(part).__name__} in the place of its projection, or with hooks"
            for part in projections
            if not alone(part)
        ]
        name = fused(self.activation_function)
        if name is None or (name != "none" and unsupported_activation(name)):
            found.append(f"a Dense calls {type(self.activation_function).__name__} row by row")
        return found

    def forward(self, features: Features) -> None:
        """Project every row of the feature that is read; the result is float32."""
        weight, plan = self.linear.weight, features.plan
        rows = features.values[self.module_input_name].to(weight.dtype)
        name = fused(self.activation_function)
        if name is None:
            out = activated(self.activation_function, project(self.linear, rows, plan))
        else:
            out = project(self.linear, rows, plan, name)
        if self.use_residual:
            out = out + (rows if self.residual is None else project(self.residual, rows, plan))
        features.values[self.module_output_name] = out.float()


class Normalize(SentenceModule):
    """Rows scaled to length 1; zeros stay zeros.

    Args:
        module_input_name: the feature that is read; where there is none, nothing happens.
        module_output_name: the feature that is written; None for the one that is read.
    """

    def __init__(
        self, module_input_name: str = SENTENCE, module_output_name: str | None = None
    ) -> None:
        super().__init__()
        self.module_input_name = module_input_name
        self.module_output_name = module_output_name or module_input_name

    def shapes(self, known: dict[str, Shape]) -> None:
        """Add the scaled feature."""
        if self.module_input_name in known:
            known[self.module_output_name] = known[self.module_input_name]

    def forward(self, features: Features) -> None:
        """Scale every row of the feature that is read."""
        given = features.values.get(self.module_input_name)
        if given is not None:
            features.values[self.module_output_name] = normalize(given)


class SentenceLayerNorm(SentenceModule):
    """LayerNorm of the vectors of the texts.

    Args:
        dimension: values of a vector.
    """

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.norm = LayerNorm(dimension, eps=NORM_EPS)

    def shapes(self, known: dict[str, Shape]) -> None:
        """Check that the vectors have the width of the parameters."""
        given, width = _input(known, SENTENCE), self.norm.weight.shape[0]
        if given.width != width:
            raise ValueError(f"takes {width} values, but {SENTENCE!r} has {given.width}.")

    def forward(self, features: Features) -> None:
        """Normalise every vector; the result is float32."""
        rows = features.values[SENTENCE].to(self.norm.weight.dtype)
        features.values[SENTENCE] = self.norm(rows, features.plan).float()


class Dropout(SentenceModule):
    """Nothing: an encoder is in eval mode.

    Args:
        dropout: the probability, which counts in training only.
    """

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        self.dropout = dropout

    def shapes(self, known: dict[str, Shape]) -> None:
        """Check that there are vectors."""
        _input(known, SENTENCE)

    def forward(self, features: Features) -> None:
        """Leave everything as it is."""


def normalize(vectors: Tensor) -> Tensor:
    """Divide vectors (..., dimension) by their Euclidean lengths; zeros stay zeros."""
    with on_one_thread(vectors):
        lengths = (vectors * vectors).sum(dim=-1, keepdim=True).sqrt()
        return vectors / lengths.clamp(min=1e-12)
