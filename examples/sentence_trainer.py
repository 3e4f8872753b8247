"""Train an embedding model of sentence-transformers on fastbert's kernels.

python examples/sentence_trainer.py sentence-transformers/all-MiniLM-L6-v2 out
"""

from __future__ import annotations

import sys
from typing import Any

import datasets
import sentence_transformers as st
from sentence_transformers.losses import MultipleNegativesRankingLoss

import fastbert

PAIRS = {
    "anchor": ["the cat", "a dog", "the house", "the mat"] * 4,
    "positive": ["the cat sat", "the dog ran", "a red house", "on the mat"] * 4,
}


def main(path: str, folder: str, steps: int = 10) -> Any:
    """Train and save; returns the model."""
    model = fastbert.accelerate(st.SentenceTransformer(path))
    trainer = st.SentenceTransformerTrainer(
        model=model,
        args=st.SentenceTransformerTrainingArguments(
            folder, max_steps=steps, per_device_train_batch_size=4, report_to=[]
        ),
        train_dataset=datasets.Dataset.from_dict(PAIRS),
        loss=MultipleNegativesRankingLoss(model),
    )
    trainer.train()
    model.save_pretrained(folder)  # sentence-transformers alone reads it
    print(model.similarity(model.encode(["the cat"]), model.encode(["the cat sat"])))
    return model


if __name__ == "__main__":
    main(*sys.argv[1:3])
