"""ALIGN computes what transformers does: by kernels, by folded batch norms and by modules.

The oracle is transformers' own class with the same weights.
"""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from align_pair import TEXT, VISION, WHOLE, inputs, pair, perturbed, theirs

import fastbert

TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return pair(tmp_path_factory.mktemp("align"))


def close(ours: Any, other: Any, tolerance: float = TOLERANCE) -> None:
    if isinstance(other, tuple):
        assert len(ours) == len(other)
        for one, two in zip(ours, other, strict=True):
            close(one, two, tolerance)
        return
    assert ours.shape == other.shape and ours.dtype == other.dtype
    assert (ours - other).norm() <= tolerance * other.norm().clamp(min=1e-3)


def same(ours: Any, other: Any, tolerance: float = TOLERANCE) -> None:
    assert list(ours) == list(other)
    assert type(ours).__name__ == type(other).__name__
    close(ours.to_tuple(), other.to_tuple(), tolerance)


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"return_loss": True},
        {"output_hidden_states": True, "return_loss": True},
        {"output_attentions": True},
        {"return_dict": False, "return_loss": True, "output_hidden_states": True},
    ],
    ids=["plain", "loss", "states", "attentions", "tuple"],
)
def test_forward_equals(models: Any, options: dict[str, Any], gradients: bool) -> None:
    ours, other = models
    if options.get("output_attentions"):
        other = copy.deepcopy(other)
        other.set_attn_implementation("eager")
    with torch.set_grad_enabled(gradients):
        found, expected = ours(**inputs(), **options), other(**inputs(), **options)
    if options.get("return_dict") is False:
        assert isinstance(found, tuple)
        close(found, expected)
    else:
        same(found, expected)


def test_more_texts_than_images(models: Any) -> None:
    ours, other = models
    given = inputs(texts=4, images=2)
    with torch.no_grad():
        same(ours(**given), other(**given))
        with pytest.raises(ValueError, match="4 texts and 2 images"):
            ours(**given, return_loss=True)


@pytest.mark.parametrize("as_dict", [True, False])
def test_features_equal(models: Any, as_dict: bool) -> None:
    given = inputs()
    pixels = given.pop("pixel_values")
    with torch.no_grad():
        texts = [one.get_text_features(**given, return_dict=as_dict) for one in models]
        images = [one.get_image_features(pixels, return_dict=as_dict) for one in models]
    for found, expected in (texts, images):
        if as_dict:
            same(found, expected)
        else:
            close(found, expected)


@pytest.mark.parametrize("gone", [slice(5, 7), slice(0, 2)], ids=["right", "left"])
def test_padded_texts(models: Any, gone: slice) -> None:
    """Column 0 is a text's vector even where it is masked."""
    ours, other = models
    given = inputs()
    given["attention_mask"][-1, gone] = 0
    with torch.no_grad():
        found, expected = ours(**given), other(**given)
    close(found.text_embeds, expected.text_embeds)
    close(found.logits_per_image, expected.logits_per_image)


@pytest.mark.parametrize(
    "vision",
    [
        {"pooling_type": "max"},
        {"hidden_act": "relu"},
        {"hidden_act": "gelu"},
        {"depthwise_padding": [1, 4]},
        {"squeeze_expansion_ratio": 0.01},
        {"batch_norm_eps": 0.5},
        {"strides": [2, 1, 2]},
        {"num_channels": 1},
        {"kernel_sizes": [7, 5, 3]},  # a window that no kernel knows
        {"kernel_sizes": [4, 3, 5]},  # one that cannot be in the middle of what it sees
    ],
    ids=lambda vision: "-".join(f"{name}-{value}" for name, value in vision.items()),
)
def test_settings_are_obeyed(vision: dict[str, Any]) -> None:
    values = {**VISION, **vision}
    other = perturbed(transformers.AlignVisionModel(transformers.AlignVisionConfig(**values)))
    ours = fastbert.AlignVisionModel(fastbert.AlignVisionConfig(**values))
    ours.load_state_dict(other.state_dict())
    pixels = torch.randn(2, values.get("num_channels", 3), 29, 36)
    for model in (ours.eval(), other.eval()):
        model.zero_grad()
    with torch.no_grad():
        same(
            ours(pixels, output_hidden_states=True), other(pixels, output_hidden_states=True), 5e-5
        )
    same(ours(pixels), other(pixels), 5e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(models: Any, dtype: torch.dtype) -> None:
    """Over several models: the two errors of a single one are apart by 0.4 to 2 either way."""
    pixels, torch_s, kernels_s = inputs()["pixel_values"], 0.0, 0.0
    for seed in range(6):
        ours, other = (copy.deepcopy(one).vision_model for one in models)
        torch.manual_seed(seed)
        for weight in other.parameters():
            weight.data.add_(torch.randn_like(weight) * 0.02)
        ours.load_state_dict(other.state_dict())
        with torch.no_grad():
            exact = other.double()(pixels.double()).pooler_output
            theirs_too = other.to(dtype)(pixels.to(dtype)).pooler_output.double()
            found = ours.to(dtype)(pixels).pooler_output.double()
        scale = exact.square().mean()
        torch_s += float((theirs_too - exact).square().mean() / scale)
        kernels_s += float((found - exact).square().mean() / scale)
    assert kernels_s <= (1e-24 if dtype is torch.float64 else 1.5**2 * torch_s)


@pytest.mark.parametrize("part", ["all", "vision"])
def test_training_equals(part: str) -> None:
    other = theirs().train()
    ours = fastbert.AlignModel(fastbert.AlignConfig(**WHOLE)).train()
    ours.load_state_dict(other.state_dict())
    found, expected = ((one if part == "all" else one.vision_model) for one in (ours, other))
    given: dict[str, Any] = {**inputs(), "return_loss": True}
    if part == "vision":
        given = {"pixel_values": given["pixel_values"]}
    for model in (found, expected):
        out = model(**given)
        (out.loss if part == "all" else out.pooler_output.square().sum()).backward()
    gradients = {name: p.grad for name, p in expected.named_parameters()}
    for name, parameter in found.named_parameters():
        one, two = parameter.grad, gradients[name]
        assert (one is None) == (two is None), name
        if two is not None:
            assert (one - two).norm() <= 1e-4 * two.norm() + 1e-6, name
    for name, buffer in found.named_buffers():
        close(buffer.double(), dict(expected.named_buffers())[name].double())


def test_dropout_is_that_of_transformers() -> None:
    config = {**VISION, "drop_connect_rate": 0.5}
    ours = fastbert.AlignVisionModel(fastbert.AlignVisionConfig(**config))
    other = transformers.AlignVisionModel(transformers.AlignVisionConfig(**config))
    rates = [
        [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)] for model in (ours, other)
    ]
    assert rates[0] == rates[1]
    names = [[n for n, _ in one.named_modules() if "act" not in n] for one in (ours, other)]
    assert names[0] == names[1]


# Named mistakes: each must be seen by the comparison above.


@pytest.mark.parametrize("mistake", ["skip missing", "squeeze and excite missing", "eps wrong"])
def test_the_comparison_bites(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastbert.models.align import folding

    other = theirs().vision_model
    ours = fastbert.AlignVisionModel(fastbert.AlignVisionConfig(**VISION)).eval()
    ours.load_state_dict(other.state_dict())
    if mistake == "eps wrong":
        folded = folding._folded
        norms = [m for m in ours.modules() if isinstance(m, torch.nn.BatchNorm2d)]

        def wrong(convolution: Any, norm: Any = None) -> Any:
            for one in norms:
                one.eps = 1e-5
            try:
                return folded(convolution, norm)
            finally:
                for one in norms:
                    one.eps = 1e-3

        monkeypatch.setattr(folding, "_folded", wrong)
    else:
        read = folding._block

        def mistaken(block: Any) -> Any:
            found = read(block)
            if mistake == "skip missing":
                found.skips = False
            else:
                found.factors.weight.zero_()
                found.factors.bias.fill_(100.0)
            return found

        monkeypatch.setattr(folding, "_block", mistaken)
    pixels = inputs()["pixel_values"]
    with torch.no_grad(), pytest.raises(AssertionError):
        close(ours(pixels).pooler_output, other(pixels).pooler_output)


# Files


def test_saved_by_us_read_by_transformers(models: Any, tmp_path: Path) -> None:
    ours, _ = models
    ours.save_pretrained(tmp_path)
    again, report = transformers.AlignModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        same(ours(**inputs()), again.eval()(**inputs()))
    assert again.config.text_config.vocab_size == TEXT["vocab_size"]


def test_towers_load_from_the_whole(models: Any, tmp_path: Path) -> None:
    _, other = models
    other.save_pretrained(tmp_path / "whole")
    given = inputs()
    pixels = given.pop("pixel_values")
    vision = fastbert.AlignVisionModel.from_pretrained(tmp_path / "whole")
    text = fastbert.AlignTextModel.from_pretrained(tmp_path / "whole")
    with torch.no_grad():
        same(vision(pixels), other.vision_model(pixels))
        same(text(**given), other.text_model(**given))
    vision.save_pretrained(tmp_path / "vision")
    again = transformers.AlignVisionModel.from_pretrained(tmp_path / "vision").eval()
    with torch.no_grad():
        same(vision(pixels), again(pixels))


def test_auto_classes(models: Any, tmp_path: Path) -> None:
    models[0].save_pretrained(tmp_path)
    assert type(fastbert.AutoConfig.from_pretrained(tmp_path)) is fastbert.AlignConfig
    for auto in (fastbert.AutoModel, fastbert.AutoModelForZeroShotImageClassification):
        assert type(auto.from_pretrained(tmp_path)) is fastbert.AlignModel
    models[0].vision_model.save_pretrained(tmp_path / "vision")
    found = fastbert.AutoModel.from_pretrained(tmp_path / "vision")
    assert type(found) is fastbert.AlignVisionModel


def test_a_missing_running_mean_is_refused(tmp_path: Path) -> None:
    state = theirs().vision_model.state_dict()
    config = fastbert.AlignVisionConfig(**VISION)
    uncounted = {name: t for name, t in state.items() if "num_batches_tracked" not in name}
    fastbert.AlignVisionModel.from_pretrained(None, config=config, state_dict=uncounted)
    gone = "encoder.blocks.0.projection.project_bn.running_mean"
    with pytest.raises(ValueError, match=gone):
        fastbert.AlignVisionModel.from_pretrained(
            None, config=config, state_dict={n: t for n, t in state.items() if n != gone}
        )


def test_copies_and_pickles_compute(models: Any) -> None:
    ours, _ = models
    with torch.no_grad():
        expected = ours(**inputs()).logits_per_image
        for again in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
            assert torch.equal(again(**inputs()).logits_per_image, expected)


def test_an_image_tower_of_ones_own(models: Any) -> None:
    """Its output is of another library, and becomes a tuple all the same."""

    class Tower(torch.nn.Module):
        def forward(self, pixel_values: torch.Tensor, **_: Any) -> Any:
            pooled = pixel_values.mean((2, 3)).repeat(1, 6)[:, :16]
            return transformers.modeling_outputs.BaseModelOutputWithPooling(pixel_values, pooled)

    both = [copy.deepcopy(one) for one in models]
    for one in both:
        one.vision_model = Tower()
    with torch.no_grad():
        found, expected = (one(**inputs()) for one in both)
    close(found.to_tuple(), expected.to_tuple())


def test_names_of_the_whole(models: Any) -> None:
    ours, other = models
    assert set(ours._no_split_modules) == set(other._no_split_modules)
