"""The same tiny task for a model of ours and one of transformers, under transformers' Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import oracle
import torch
import transformers
from torch import Tensor
from transformers import TrainingArguments

import fastbert
from fastbert.integrations.transformers import Trainer

# Every model with a head; CamemBERT's are RoBERTa's.
HEADS = [
    name
    for name in oracle.CLASSES
    if (not name.endswith("Model") or name.endswith("LMHeadModel")) and "Roberta" not in name
]
DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout_prob")
DROPOUTS = (*DROPOUTS, "dropout", "attention_dropout", "summary_first_dropout")


def without_dropout(name: str) -> dict[str, float]:
    """What the configuration of a model says where nothing is dropped."""
    config = getattr(fastbert, f"{oracle.family_of(name)}Config")()
    return {setting: 0.0 for setting in DROPOUTS if hasattr(config, setting)}


def pair(name: str) -> tuple[Any, Any]:
    """(transformers' model, ours), float32, the same weights, without dropout, in training mode."""
    theirs, ours = (m.float().train() for m in oracle.pair(name, **without_dropout(name)))
    if oracle.is_causal(name):
        # Without it, transformers divides BertLMHeadModel's loss by labels that it does not score.
        theirs.loss_type = "ForCausalLM"
    return theirs, ours


class Rows(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Random texts with the labels of one head, some of them padded."""

    def __init__(self, name: str, count: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.rows = [self._row(name, index, generator) for index in range(count)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.rows[index]

    @staticmethod
    def _row(name: str, index: int, generator: torch.Generator) -> dict[str, Tensor]:
        length = oracle.LENGTH
        shape = (oracle.CHOICES, length) if name.endswith("ForMultipleChoice") else (length,)
        ids = torch.randint(4, oracle.VOCABULARY, shape, generator=generator)
        mask = torch.ones(shape, dtype=torch.long)
        mask[..., 3 + index % 5 :] = 0
        row = {"input_ids": ids, "attention_mask": mask}
        some = (torch.rand(shape, generator=generator) < 0.6) & (mask == 1)
        if name.endswith(("LMHeadModel", "ForCausalLM", "ForMaskedLM", "ForPreTraining")):
            row["labels"] = torch.where(some, ids, -100)
            row["labels"][1] = ids[1]  # at least one
        elif name.endswith("ForTokenClassification"):
            row["labels"] = torch.where(mask == 1, ids % 2, -100)
        elif "ForQuestionAnswering" in name:
            row["start_positions"], row["end_positions"] = torch.tensor(1), torch.tensor(2)
        elif name.endswith("ForMultipleChoice"):
            row["labels"] = torch.tensor(index % oracle.CHOICES)
        else:
            row["labels"] = torch.tensor(index % 2)
        if name == "ElectraForPreTraining":
            row["labels"] = some.long()
        elif name.endswith("ForPreTraining"):
            row["next_sentence_label"] = torch.tensor(index % 2)
        return row


def arguments(folder: Path, **changed: Any) -> TrainingArguments:
    values: dict[str, Any] = {
        "max_steps": 3,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 3,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "seed": 3,
    }
    return TrainingArguments(output_dir=str(folder), **{**values, **changed})


def trainer(model: Any, name: str, folder: Path, callbacks: Any = None, **changed: Any) -> Any:
    """transformers' Trainer for its models, ours for ours, over the rows of a head."""
    kind = transformers.Trainer if isinstance(model, transformers.PreTrainedModel) else Trainer
    made = kind(
        model=model,
        args=arguments(folder, **changed),
        train_dataset=Rows(name, 16),
        eval_dataset=Rows(name, 7, seed=1),
        callbacks=callbacks,
    )
    made.remove_callback(transformers.PrinterCallback)
    return made


def logged(made: Any, *names: str) -> list[float]:
    """The values that were logged under these names, in order."""
    return [entry[name] for entry in made.state.log_history for name in names if name in entry]


def fresh(name: str, seed: int = 0, **changed: Any) -> Any:
    """A model of ours with random weights, and dropout unless that is changed."""
    torch.manual_seed(seed)
    family = oracle.family_of(name)
    values = {**oracle.FAMILIES[family], "num_labels": 2, **changed}
    if oracle.is_causal(name):
        values["is_decoder"] = True
    return getattr(fastbert, name)(getattr(fastbert, f"{family}Config")(**values))
