"""What the distance between two tokens adds to their scores, a number for each head.

Distances share a number by buckets, exact ones near and wider ones far away (Raffel et al. 2020,
"Exploring the limits of transfer learning with a unified text-to-text transformer", section 2.1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastbert.kernels.openmp import on_one_thread
from fastbert.layers.attention import columns
from fastbert.layers.score_bias import ScoreBias
from fastbert.runtime.packing import PackedBatch

BUCKETS, FARTHEST = 32, 128


def bucket_of(distance: Tensor, buckets: int = BUCKETS, farthest: int = FARTHEST) -> Tensor:
    """Sort distances into buckets: half of them for keys before the query, half for those behind.

    Args:
        distance: int64, column of the key minus column of the query.
        buckets: number of buckets.
        farthest: from here on, all distances share the last bucket of their side.

    Returns:
        int64 of the same shape, from 0 to buckets - 1.
    """
    side = buckets // 2
    far = distance.abs()
    exact = side // 2
    # float32, and in this order: a distance on the edge of a bucket must fall where others put it.
    ratio = torch.log(far.clamp(min=1).float() / exact) / math.log(farthest / exact)
    wide = exact + (ratio * (side - exact)).to(torch.long)
    bucket = torch.where(far < exact, far, wide.clamp(max=side - 1))
    return bucket + (distance > 0).to(torch.long) * side


def bucket_bias(table: nn.Embedding, batch: PackedBatch) -> Tensor:
    """Compute what distances add to the scores of self-attention.

    The distance of two tokens is that of their columns in the padded grid.

    Args:
        table: (buckets, heads).
        batch: the tokens.

    Returns:
        (1 or batch, heads, batch.max_seqlen, batch.max_seqlen), by positions within a sequence, one
        for all sequences where every one of them is a run of columns.
    """
    if _runs(batch):
        places = torch.arange(batch.max_seqlen, device=batch.cu_seqlens.device)[None]
    else:
        places = columns(batch)
    with on_one_thread(places):
        buckets = bucket_of(places[:, None, :] - places[:, :, None])
        bias: Tensor = table(buckets).permute(0, 3, 1, 2)
        return bias.contiguous()


@dataclass(frozen=True)
class DistanceBias:
    """What the distances between the tokens of a batch add to the scores of every layer.

    It is computed when it is asked for, in the form that is asked for.

    Attributes:
        table: (buckets, heads).
        batch: the tokens.
    """

    table: nn.Embedding
    batch: PackedBatch

    def scores(self) -> Tensor:
        """Compute it whole; see `bucket_bias`."""
        return bucket_bias(self.table, self.batch)

    def score_bias(self) -> ScoreBias:
        """Compute the same numbers as kernels read them, where possible each distance's once."""
        longest = self.batch.max_seqlen
        if not longest or not _runs(self.batch):
            return ScoreBias(self.scores())
        distances = torch.arange(1 - longest, longest, device=self.batch.cu_seqlens.device)
        with on_one_thread(distances):
            by_head = self.table(bucket_of(distances)).t().float().contiguous()
        # Row r begins at distance r + 1 - longest: that of key 0 from query longest - 1 - r.
        return ScoreBias(by_head.unfold(1, longest, 1)[None], backwards=True)


def _runs(batch: PackedBatch) -> bool:
    """Return whether the tokens of every sequence stand in columns without a hole between them.

    False where finding out would cost more than it saves: on a GPU, and in a traced pass.
    """
    indices = batch.indices
    if indices is None:
        return True
    if indices.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    steps = torch.diff(indices)
    starts = batch.cu_seqlens[1:-1].long()
    starts = starts[(starts > 0) & (starts < len(indices))] - 1
    steps[starts] = 1
    return bool((steps == 1).all())
