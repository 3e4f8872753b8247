"""Train an adapter of PEFT over an accelerated model, and merge it.

python examples/lora.py bert-base-uncased out
"""

from __future__ import annotations

import sys
from typing import Any

import peft
import torch
import transformers

import fastbert

TEXTS = ["the cat sat on the mat", "a red house", "the dog ran far", "a blue house"]
LABELS = torch.tensor([0, 1, 0, 1])


def main(path: str, folder: str, steps: int = 20) -> Any:
    """Train and merge; returns the merged model, which is saved in the folder."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(path, num_labels=2)
    settings = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], r=8)
    adapted = peft.get_peft_model(fastbert.accelerate(model), settings)
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    optimizer = torch.optim.AdamW((p for p in adapted.parameters() if p.requires_grad), lr=1e-2)
    for _ in range(steps):
        loss = adapted(**batch, labels=LABELS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    print(f"loss {loss.item():.3f}")
    merged = adapted.merge_and_unload().eval()
    merged.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return merged


if __name__ == "__main__":
    main(*sys.argv[1:3])
