"""The loss of a head under transformers' Trainer: what it is a mean over.

Every head trains beside transformers' own model with the same weights. With accumulated gradients
the loss must be that of one large batch: transformers adds up means without dividing them there, so
the large batch is what is compared with.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import oracle
import pytest
import torch
import training
from torch import Tensor, nn

import fastbert

TOKENS = ("LMHeadModel", "ForCausalLM", "ForMaskedLM", "ForTokenClassification")


@pytest.mark.parametrize("name", training.HEADS)
def test_a_head_trains_as_transformers_does(name: str, tmp_path: Path) -> None:
    # Not AdamW: where a gradient is zero but for rounding, as of a bias under a softmax, it makes
    # whole steps of the rounding.
    found = []
    for model in training.pair(name):
        made = training.trainer(model, name, tmp_path, optim="sgd", learning_rate=0.01)
        made.train()
        found.append((made, made.predict(made.eval_dataset)))
    (theirs, expected), (ours, output) = found
    for kind in ("loss", "grad_norm"):
        values = training.logged(ours, kind)
        assert len(values) == 3
        assert values == pytest.approx(training.logged(theirs, kind), rel=1e-5)
    assert output.metrics["test_loss"] == pytest.approx(expected.metrics["test_loss"], rel=1e-5)
    assert ours.label_names == theirs.label_names
    if name == "FlaubertForQuestionAnswering":
        return  # with the answer, it returns the loss alone
    mask = torch.stack([row["attention_mask"] for row in ours.eval_dataset.rows])
    for one, other in zip(parts(expected.predictions), parts(output.predictions), strict=True):
        oracle.close(torch.tensor(one), torch.tensor(other), mask, 1e-5, name)


def parts(predictions: Any) -> tuple[Any, ...]:
    return predictions if isinstance(predictions, tuple) else (predictions,)


@pytest.mark.parametrize("name", training.HEADS)
def test_accumulated_gradients_are_those_of_the_large_batch(name: str, tmp_path: Path) -> None:
    found = []
    for size, steps in ((4, 1), (2, 2)):
        model = training.pair(name)[1]
        made = training.trainer(
            model,
            name,
            tmp_path,
            max_steps=1,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
        )
        made.train()
        found.append(training.logged(made, "loss", "grad_norm"))
    if name.endswith("ForPreTraining"):
        # The means over masked tokens are as many as there are batches.
        assert found[1] == pytest.approx(found[0], rel=0.3)
        return
    assert found[1] == pytest.approx(found[0], rel=1e-5)


@pytest.mark.parametrize("name", training.HEADS)
def test_a_loss_divides_by_the_number_it_is_given(name: str) -> None:
    model = training.fresh(name).eval()
    row = torch.utils.data.default_collate(training.Rows(name, 4).rows)
    with torch.no_grad():
        mean = model(**row).loss
        if name.endswith(("ForPreTraining", "FlaubertForQuestionAnswering")):
            with pytest.raises(ValueError, match="num_items_in_batch"):
                model(**row, num_items_in_batch=4)
            return
        labels = row["labels"] if "labels" in row else row["start_positions"]
        labels = labels[:, 1:] if oracle.is_causal(name) else labels
        count = int((labels != -100).sum())
        for given in (2 * count, torch.tensor(2 * count), torch.tensor([[2.0 * count]])):
            loss = model(**row, num_items_in_batch=given).loss
            assert loss.shape == () and float(loss) == pytest.approx(float(mean) / 2, rel=1e-6)
    assert model.accepts_loss_kwargs == name.endswith(TOKENS)


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification"])
@pytest.mark.parametrize("labels", [1, 3])
def test_values_and_several_labels_count_one_by_one(problem: str, labels: int) -> None:
    config = fastbert.BertConfig(**oracle.FAMILIES["Bert"], num_labels=labels, problem_type=problem)
    model = fastbert.BertForSequenceClassification(config).eval()
    ids, given = oracle.random_ids(), torch.rand(oracle.BATCH, labels)
    with torch.no_grad():
        mean = model(ids, labels=given).loss
        halves = [
            model(ids[part], labels=given[part], num_items_in_batch=given.numel()).loss
            for part in (slice(0, 1), slice(1, None))
        ]
    assert float(sum(halves)) == pytest.approx(float(mean), rel=1e-5)


class Doubled(nn.Module):
    """A loss of one's own, which is a module."""

    def forward(self, logits: Tensor, labels: Tensor, **_: Any) -> Tensor:
        return 2 * nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())


@pytest.mark.parametrize("own", [Doubled(), lambda **given: Doubled()(**given)])
def test_a_loss_function_of_ones_own_is_called(own: Any) -> None:
    model = training.fresh("BertForTokenClassification").eval()
    row = torch.utils.data.default_collate(training.Rows("BertForTokenClassification", 4).rows)
    with torch.no_grad():
        plain = model(**row).loss
        assert float(model.loss_function(model(**row).logits, row["labels"], model.config)) == plain
        model.loss_function = own
        assert float(model(**row).loss) == pytest.approx(2 * float(plain))


def test_loss_functions_have_the_arguments_of_transformers() -> None:
    """As subclasses call them in their own forward."""
    import transformers

    logits, labels = torch.randn(2, 5, 7), torch.randint(0, 7, (2, 5))
    config: Any = fastbert.BertConfig(num_labels=7)
    spans = (logits[..., 0], logits[..., 1], labels[:, 0] % 5, labels[:, 1] % 5)
    for kind, arguments in (
        ("ForCausalLM", (logits, labels, 7)),
        ("ForMaskedLM", (logits, labels, 7)),
        ("ForTokenClassification", (logits, labels, config)),
        ("ForSequenceClassification", (labels[:, 0], logits[:, 0], config)),
        ("ForQuestionAnswering", spans),
    ):
        theirs = transformers.loss.loss_utils.LOSS_MAPPING[kind]
        name = "BertLMHeadModel" if kind == "ForCausalLM" else f"Bert{kind}"
        ours = training.fresh(name).loss_function
        for more in ({}, {"num_items_in_batch": 3}):
            assert float(ours(*arguments, **more)) == pytest.approx(
                float(theirs(*arguments, **more))
            )
