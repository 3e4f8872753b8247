"""Labels of tokens in every shape that a loss reads, against transformers.

Losses flatten their labels. Guarded is that a label of padding is found in any of these shapes: the
logits of padding are left out where no label asks for them, and the loss would then take zeros.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.append(str(Path(__file__).parent))

from family_pairs import IDS, MASK, pair

LABELS = torch.randint(0, 2, IDS.shape, generator=torch.Generator().manual_seed(2))
PLACES = {
    "all": LABELS,
    "text": LABELS.masked_fill(MASK == 0, -100),
    "padding": LABELS.masked_fill(MASK == 1, -100),
    # Next-token prediction moves labels to the token before, over the end of a flat row too.
    "first": LABELS.masked_fill(torch.arange(IDS.shape[1]) > 0, -100),
}
HEADS = [
    ("bert", "ForMaskedLM"),
    ("mpnet", "ForTokenClassification"),
    ("flaubert", "WithLMHeadModel"),
    ("roberta", "ForCausalLM"),
]


@pytest.mark.parametrize(("family", "task"), HEADS)
@pytest.mark.parametrize("places", PLACES)
@pytest.mark.parametrize("shape", [(3, 7), (21,), (1, 21)])
def test_a_loss_reads_labels_of_any_shape(
    family: str, task: str, places: str, shape: tuple[int, ...]
) -> None:
    changes = {"is_decoder": True} if task == "ForCausalLM" else {}
    theirs, ours = pair(family, task, **changes)
    labels: Tensor = PLACES[places].reshape(shape)
    with torch.no_grad():
        expected, found = (
            model(IDS, attention_mask=MASK, labels=labels).loss for model in (theirs, ours)
        )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, equal_nan=True)
