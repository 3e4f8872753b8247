"""Train a classifier of transformers under its Trainer, on fastbert's kernels.

python examples/trainer.py bert-base-uncased out

The texts below stand for a data set of your own.
"""

from __future__ import annotations

import sys
from typing import Any

import transformers

import fastbert

TEXTS = ["the cat sat on the mat", "a red house", "the dog ran far", "a blue house"] * 4
LABELS = [0, 1, 0, 1] * 4


def main(path: str, folder: str, steps: int = 20, rate: float = 5e-5) -> Any:
    """Train, evaluate and save; returns the trainer."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(path, num_labels=2)
    fastbert.accelerate(model)
    rows = [{**tokenizer(text), "labels": label} for text, label in zip(TEXTS, LABELS, strict=True)]
    trainer = transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=4,
            learning_rate=rate,
            report_to=[],
        ),
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tokenizer,
    )
    trainer.train()
    print(trainer.evaluate())
    print(fastbert.explain(model))
    trainer.save_model(folder)  # a plain folder of transformers
    return trainer


if __name__ == "__main__":
    main(*sys.argv[1:3])
