"""What a run of transformers' Trainer leaves behind and hands on: files, states, callbacks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
import training
import transformers
from transformers import TrainerCallback

import fastbert

NAME = "BertForSequenceClassification"
TIED = ["BertForMaskedLM", "CamembertForMaskedLM", "FlaubertWithLMHeadModel", "BertForPreTraining"]
BEST: dict[str, Any] = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss"}


@pytest.mark.parametrize("name", [NAME, "RemBertForCausalLM", *TIED])
def test_a_checkpoint_is_whole(name: str, tmp_path: Path, caplog: Any) -> None:
    """from_pretrained of ours and of transformers loads it, tied weights included."""
    made = training.trainer(
        training.fresh(name), name, tmp_path, save_strategy="steps", save_steps=3
    )
    made.train()
    again = getattr(fastbert, name).from_pretrained(tmp_path / "checkpoint-3")
    theirs = getattr(transformers, name).from_pretrained(tmp_path / "checkpoint-3")
    trained = made.model.state_dict()
    for state in (again.state_dict(), theirs.state_dict()):
        assert state.keys() >= trained.keys() - {"cls.predictions.decoder.bias"}
        assert all(torch.equal(trained[key], state[key]) for key in trained if key in state)
    assert (tmp_path / "checkpoint-3" / "training_args.bin").exists()
    with caplog.at_level("WARNING", logger="transformers"):
        made.train(resume_from_checkpoint=True)
    assert "missing keys" not in caplog.text


@pytest.mark.parametrize("name", [NAME, "CamembertForMaskedLM"])
def test_resuming_goes_on_as_if_nothing_had_happened(name: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    straight = training.trainer(training.fresh(name), name, tmp_path, **settings)
    straight.train()
    resumed = training.trainer(training.fresh(name, seed=9), name, tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    wanted, found = straight.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(wanted[key], found[key]) for key in wanted)
    assert training.logged(resumed, "loss", "grad_norm") == training.logged(
        straight, "loss", "grad_norm"
    )


def test_the_best_checkpoint_and_the_early_stop_are_those_of_transformers(tmp_path: Path) -> None:
    found = []
    for number, model in enumerate(training.pair(NAME)):
        made = training.trainer(
            model,
            NAME,
            tmp_path / str(number),
            [transformers.EarlyStoppingCallback(early_stopping_patience=2)],
            max_steps=20,
            learning_rate=0.1,
            optim="sgd",
            eval_strategy="steps",
            eval_steps=2,
            save_strategy="steps",
            save_steps=2,
            **BEST,
        )
        made.train()
        found.append(made)
    theirs, ours = found
    assert ours.state.global_step == theirs.state.global_step < 20
    assert ours.state.best_global_step == theirs.state.best_global_step
    assert ours.state.best_metric == pytest.approx(theirs.state.best_metric, rel=1e-4)
    assert ours.evaluate()["eval_loss"] == pytest.approx(ours.state.best_metric, rel=1e-6)


@pytest.mark.parametrize("name", [NAME, "RemBertForCausalLM", "FlaubertForTokenClassification"])
@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adafactor"])
def test_mixed_precision_recomputed_layers_and_other_optimizers(
    name: str, optim: str, tmp_path: Path
) -> None:
    """bfloat16 rounds to 3 digits; beside transformers' own under the same settings."""
    checkpointing = not name.startswith("Flaubert")
    losses = []
    for model in training.pair(name):
        made = training.trainer(
            model,
            name,
            tmp_path,
            bf16=True,
            gradient_checkpointing=checkpointing,
            optim=optim,
            eval_strategy="steps",
            eval_steps=3,
        )
        made.train()
        losses.append(training.logged(made, "loss", "eval_loss"))
        assert getattr(made.model, "is_activation_checkpointing", False) == checkpointing
    assert len(losses[1]) == 4 and losses[1] == pytest.approx(losses[0], rel=0.03)


@pytest.mark.parametrize("options", [{"every_n_layers": 2}, {"offload": True}, {}])
def test_recomputed_layers_have_the_same_gradients(options: dict[str, Any]) -> None:
    row = torch.utils.data.default_collate(training.Rows(NAME, 4).rows)
    gradients = []
    for checkpointing in (False, True):
        model = training.fresh(NAME, **training.without_dropout(NAME)).train()
        if checkpointing:
            model.activation_checkpointing_enable(**options)
        model(**row).loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(map(torch.equal, *gradients))
    model.activation_checkpointing_disable()
    assert not model.is_activation_checkpointing


def test_label_smoothing_and_metrics_are_those_of_transformers(tmp_path: Path) -> None:
    name, found = "CamembertForTokenClassification", []
    for model in training.pair(name):
        made = training.trainer(model, name, tmp_path, label_smoothing_factor=0.1, optim="sgd")
        made.compute_metrics = lambda p: {"mean": float(p.predictions[p.label_ids != -100].mean())}
        made.train()
        found.append([*training.logged(made, "loss"), made.evaluate()["eval_mean"]])
    assert found[1] == pytest.approx(found[0], rel=1e-4)


class Recorder(TrainerCallback):
    """Notes the events, and what they are told of the model."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.logs: list[dict[str, Any]] = []

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("on_"):
            return lambda args, state, control, **given: self.note(name, control, **given)
        return super().__getattribute__(name)

    def note(self, event: str, control: Any, logs: Any = None, **given: Any) -> Any:
        self.events.append(event.removeprefix("on_"))
        assert isinstance(given["model"], fastbert.BertForSequenceClassification)
        if logs is not None:
            self.logs.append(dict(logs))
        if event == "on_step_end" and len(self.logs) >= 2:
            control.should_training_stop = True
        return control


def test_callbacks_see_every_event_and_steer(tmp_path: Path) -> None:
    recorder = Recorder()
    made = training.trainer(
        training.fresh(NAME),
        NAME,
        tmp_path,
        [recorder],
        max_steps=9,
        gradient_accumulation_steps=2,
        save_strategy="steps",
        save_steps=1,
    )
    made.train()
    step = "step_begin substep_end pre_optimizer_step optimizer_step step_end"
    assert " ".join(recorder.events) == (
        f"init_end train_begin epoch_begin {step} log save {step} log save {step} epoch_end log "
        "train_end"
    ).replace("epoch_end", "log save epoch_end", 1)
    assert made.state.global_step == 3


def test_progress_and_printer_say_what_they_say(tmp_path: Path, capsys: Any) -> None:
    made = training.trainer(training.fresh(NAME), NAME, tmp_path, disable_tqdm=False)
    made.train()
    told = capsys.readouterr()
    assert "3/3" in told.err and "'grad_norm':" in told.out + told.err
    made.remove_callback(transformers.trainer_callback.ProgressCallback)
    made.add_callback(transformers.PrinterCallback)
    made.train()
    told = capsys.readouterr()
    assert told.out.count("'loss':") == 3 and "total_flos" not in told.out


def test_tensorboard_gets_the_losses_and_the_configuration(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    callback = transformers.integrations.TensorBoardCallback(SummaryWriter(str(tmp_path)))
    made = training.trainer(training.fresh(NAME), NAME, tmp_path, [callback])
    made.train()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = [EventAccumulator(str(file.parent)) for file in tmp_path.rglob("events.out*")]
    board = next(one for one in events if "train/loss" in one.Reload().Tags()["scalars"])
    values = [event.value for event in board.Scalars("train/loss")]
    assert values == pytest.approx(training.logged(made, "loss"), rel=1e-4)
    text = board.Tensors("model_config/text_summary")[0].tensor_proto.string_val[0]
    assert json.loads(text)["model_type"] == "bert"


def test_a_tokenizer_of_ours_pads_and_is_saved(tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film"]
    tokenizer = fastbert.BertTokenizer(vocab={word: index for index, word in enumerate(words)})
    texts = ["good film", "bad", "bad bad film film", "good"]
    rows = [{**tokenizer(text), "labels": index % 2} for index, text in enumerate(texts)]
    from fastbert.integrations.transformers import Trainer

    arguments = training.arguments(tmp_path, save_strategy="steps", save_steps=3)
    made = Trainer(training.fresh(NAME), arguments, train_dataset=rows, processing_class=tokenizer)
    made.remove_callback(transformers.PrinterCallback)
    made.train()
    again = fastbert.AutoTokenizer.from_pretrained(tmp_path / "checkpoint-3")
    assert again("good film")["input_ids"] == tokenizer("good film")["input_ids"]


def _train_on_one_of_two(rank: int, folder: str, port: int) -> None:
    import os

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    for name, checkpointing in ((NAME, True), ("CamembertForMaskedLM", False)):
        made = training.trainer(
            training.pair(name)[1],
            name,
            Path(folder) / name,
            ddp_backend="gloo",
            gradient_checkpointing=checkpointing,
            optim="sgd",
            save_strategy="steps",
            save_steps=3,
        )
        made.train()
        loss = made.evaluate()["eval_loss"]
        state = [value.double().sum().item() for value in made.model.state_dict().values()]
        result = {"loss": training.logged(made, "grad_norm"), "eval": loss, "state": state}
        (Path(folder) / f"{name}-{rank}.json").write_text(json.dumps(result))
    torch.distributed.barrier()
    # Nothing is taken down: torch 2.13 joins gloo's threads while it holds Python's lock, which one
    # of them may be waiting for, and then neither goes on.
    os._exit(0)


def test_two_processes_train_as_one_with_twice_the_batch(tmp_path: Path) -> None:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Forked, since importing everything anew takes each of them 10 s and more.
    start = torch.multiprocessing.start_processes
    start(_train_on_one_of_two, (str(tmp_path), port), nprocs=2, start_method="fork")
    for name in (NAME, "CamembertForMaskedLM"):
        one, two = (json.loads((tmp_path / f"{name}-{rank}.json").read_text()) for rank in (0, 1))
        assert one["state"] == two["state"]
        model = training.pair(name)[1]
        made = training.trainer(
            model, name, tmp_path / "alone", per_device_train_batch_size=4, optim="sgd"
        )
        made.train()
        state = [value.double().sum().item() for value in model.state_dict().values()]
        assert one["state"] == pytest.approx(state, rel=1e-4, abs=1e-4)
        assert one["loss"] == pytest.approx(training.logged(made, "grad_norm"), rel=1e-4)
        assert getattr(fastbert, name).from_pretrained(tmp_path / name / "checkpoint-3")
