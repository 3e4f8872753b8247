"""The registry of cases: a model's shape and the lengths of the texts it is given."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

SORTED_BATCH = 8


@dataclass(frozen=True)
class Shape:
    """The sizes of an encoder, which decide its work.

    Attributes:
        name: the registry's name of the model.
        layers: number of layers.
        hidden: width of the hidden states.
        intermediate: width between the two projections of the feed-forward part.
        heads: number of attention heads.
        vocabulary: number of tokens.
        embedding: width of the embedding table; None for that of the hidden states.
    """

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    vocabulary: int
    embedding: int | None = None

    @property
    def weights(self) -> int:
        """Number of weights in the layers' projections, which every pass reads once."""
        per_layer = 4 * self.hidden**2 + 2 * self.hidden * self.intermediate
        return self.layers * per_layer

    def operations(self, lengths: tuple[int, ...]) -> float:
        """Count multiplications and additions for texts of these lengths, without padding."""
        projections = 2.0 * self.weights * sum(lengths)
        attention = 4.0 * self.layers * self.hidden * sum(length**2 for length in lengths)
        return projections + attention


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("bert-base", 12, 768, 3072, 12, 30522),
        Shape("minilm", 6, 384, 1536, 12, 30522),
        Shape("camembert-large", 24, 1024, 4096, 16, 32005),
        Shape("flaubert-large", 24, 1024, 4096, 16, 68729),
        Shape("rembert", 32, 1152, 4608, 18, 250300, 256),
        Shape("roberta-base", 12, 768, 3072, 12, 50265),
        Shape("xlm-roberta-base", 12, 768, 3072, 12, 250002),
        Shape("distilbert-base", 6, 768, 3072, 12, 30522),
        Shape("electra-base", 12, 768, 3072, 12, 30522),
        Shape("mpnet-base", 12, 768, 3072, 12, 30527),
    )
}


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        name: what the table calls it.
        model: a name from SHAPES.
        lengths: tokens of every text; empty where real texts are given.
        texts: number of real texts; the time then includes tokenising them.
        group: cases that are run together: "base", "text", "large", "families", "growth",
            "latency".
        pause: seconds without work before every timed call, as a service has between requests.
    """

    name: str
    model: str
    lengths: tuple[int, ...] = ()
    texts: int = 0
    group: str = "base"
    pause: float = 0.0

    @property
    def shape(self) -> Shape:
        """Shape of its model."""
        return SHAPES[self.model]

    @property
    def ragged(self) -> bool:
        """Whether the texts differ in length, so that sorting them helps an engine that pads."""
        return len(set(self.lengths)) > 1

    @property
    def fill(self) -> float:
        """Share of real tokens in one batch padded to the longest text."""
        return sum(self.lengths) / (len(self.lengths) * max(self.lengths))


def ragged_lengths(count: int, seed: int = 0, shortest: int = 8, longest: int = 512) -> list[int]:
    """Draw lengths like those of real text: lognormal(4.0, 0.8), whole tokens, clipped.

    Args:
        count: number of texts.
        seed: of the random numbers.
        shortest: least number of tokens.
        longest: largest number of tokens.
    """
    drawn = np.random.default_rng(seed).lognormal(4.0, 0.8, size=count)
    return [int(value) for value in np.clip(drawn, shortest, longest)]


def _uniform(name: str, model: str, batch: int, length: int, group: str = "base") -> Case:
    return Case(name, model, (length,) * batch, group=group)


# Long enough for worker threads to fall asleep.
PAUSE = 0.03


def _with_pause(case: Case) -> tuple[Case, Case]:
    """Return a case, and the same after a pause before every call."""
    return case, replace(case, name=f"{case.name}-cool", pause=PAUSE)


# The seed whose 32 lengths fill 36 % of their padded batch.
RAGGED_SEED = 0


def _family(name: str) -> tuple[Case, Case]:
    """Return a family at base size, with texts of one length and with ragged ones."""
    model = f"{name}-base"
    lengths = tuple(ragged_lengths(32, RAGGED_SEED))
    return (
        _uniform(name, model, 8, 128, "families"),
        Case(f"{name}-ragged", model, lengths, group="families"),
    )


CASES = {
    case.name: case
    for case in (
        _uniform("1x16", "bert-base", 1, 16),
        _uniform("1x128", "bert-base", 1, 128),
        _uniform("8x128", "bert-base", 8, 128),
        _uniform("4x512", "bert-base", 4, 512),
        Case("ragged32", "bert-base", tuple(ragged_lengths(32, RAGGED_SEED))),
        Case("minilm-texts", "minilm", texts=512, group="text"),
        _uniform("camembert-large", "camembert-large", 8, 128, "large"),
        _uniform("flaubert-large", "flaubert-large", 8, 128, "large"),
        _uniform("rembert", "rembert", 8, 128, "large"),
        *(
            case
            for family in ("bert", "roberta", "xlm-roberta", "distilbert", "electra", "mpnet")
            for case in _family(family)
        ),
        *(
            case
            for length in (8, 16, 24, 32, 48, 64)
            for case in _with_pause(
                _uniform(f"latency-{length}", "bert-base", 1, length, "latency")
            )
        ),
        *_with_pause(Case("query", "minilm", texts=1, group="latency")),
        *(
            Case(
                f"growth-{thousands}k",
                "bert-base",
                tuple(ragged_lengths(round(thousands * 1000 / 72), seed=thousands)),
                group="growth",
            )
            for thousands in (1, 4, 16, 64)
        ),
    )
}


def chosen(names: str) -> list[Case]:
    """Return the cases that a list of names means.

    Args:
        names: names of cases or of groups, separated by commas, or "all".

    Raises:
        ValueError: for a name that is neither.
    """
    groups = {case.group for case in CASES.values()}
    found: dict[str, Case] = {}
    for name in (part.strip() for part in names.split(",")):
        if name in CASES:
            found[name] = CASES[name]
        elif name in groups or name == "all":
            found |= {k: v for k, v in CASES.items() if name in (v.group, "all")}
        else:
            raise ValueError(
                f"There is no case {name!r}; choose from {', '.join(CASES)}, or a group: "
                f"{', '.join(sorted(groups))}, all."
            )
    return list(found.values())


def arrangements(case: Case) -> dict[str, list[list[int]]]:
    """Return the ways in which an engine that pads may be given the texts.

    Returns:
        {name: batches of text indices}: all texts as they arrive and, where their lengths differ,
        sorted ones in batches of SORTED_BATCH.
    """
    everything = list(range(len(case.lengths)))
    found = {"arrival": [everything]}
    if case.ragged:
        by_length = sorted(everything, key=lambda index: case.lengths[index])
        found["sorted"] = [
            by_length[begin : begin + SORTED_BATCH]
            for begin in range(0, len(by_length), SORTED_BATCH)
        ]
    return found
