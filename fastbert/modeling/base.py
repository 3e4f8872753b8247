"""PreTrainedModel: the base of all models, with loading, saving, parts and choice of kernels."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, cast, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastbert.checkpoints.saving import SaveOptions
from fastbert.layers.block import Block
from fastbert.layers.parent import Parent
from fastbert.modeling import keywords, loading, matching, resize, saving
from fastbert.modeling.config import PreTrainedConfig, of_transformers
from fastbert.modeling.introspection import Described
from fastbert.modeling.quantization import Group, encoder_groups
from fastbert.modeling.sizes import check_sizes
from fastbert.modeling.training import Trainable
from fastbert.runtime.plan import Plan, Traits, build_plan
from fastbert.runtime.versions import Kept

if TYPE_CHECKING:
    from fastbert.modeling.encoder import EncoderModel


def _no_config(kind: type[PreTrainedModel], given: object) -> str:
    name, wanted = kind.__name__, kind.config_class
    what = f"a {type(given).__name__}"
    do = f"use {name}.from_pretrained(path) to load a checkpoint"
    if of_transformers(given):
        what += f" of {type(given).__module__}"
        do = f"make one by {wanted.__name__}.from_dict(config)"
    return (
        f"{name} is built from a {wanted.__name__} of {wanted.__module__}, not from {what}; {do}."
    )


def _fit_bias(projection: nn.Linear) -> None:
    """Cut a bias to as many numbers as the weight has rows, or fill it with zeros."""
    rows, bias = len(projection.weight), projection.bias
    if bias is not None and len(bias) != rows:
        # In place: a head may hold the same parameter under another name.
        bias.data = F.pad(bias.data, (0, rows - len(bias)))
        projection.out_features = rows


class PreTrainedModel(Described, Trainable, Parent):
    """Base of all models.

    Kernels run on packed copies of the weights, which follow every change that torch knows of. A
    raw write (`.data[...] =`, NumPy, DLPack, a storage) is not one: call `refresh()` after it.

    Args:
        config: the configuration; the model keeps it, not a copy.

    Attributes:
        config_class: the class of the configuration that the model is built from.
        base_model_prefix: name of the attribute that holds the encoder in a model with a head;
            the parameter names in checkpoints of the encoder alone lack it.
        checkpoint_prefixes: further prefixes that base_model_prefix has in checkpoints.
        _tied_weights_keys: parameter -> the parameter that it is tied to, where
            config.tie_word_embeddings is set.
        config: the configuration.
        name_or_path: the place that the model was loaded from.
        backend: the backend of `set_backend`.
        strict: whether a backend that cannot serve an op is an error.
        batch_invariant: whether no gemm is left to cuBLAS.
    """

    config_class: ClassVar[type[PreTrainedConfig]]
    base_model_prefix: ClassVar[str] = ""
    checkpoint_prefixes: ClassVar[tuple[str, ...]] = ()
    _tied_weights_keys: ClassVar[dict[str, str]] = {}
    _keys_to_ignore_on_load_missing: ClassVar[list[str] | None] = None

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        if not isinstance(config, PreTrainedConfig):
            raise TypeError(_no_config(type(self), config))
        check_sizes(config)
        self.config: PreTrainedConfig = config
        if config._attn_implementation is None:
            # As libraries expect; see set_attn_implementation.
            config._attn_implementation = {"": "sdpa"}
        self.name_or_path = config.name_or_path
        self.backend = "auto"
        self.strict = False
        self.batch_invariant = False
        self._warned_padding = False

    # Building

    def post_init(self) -> None:
        """Initialise the modules that are not initialised yet, and tie weights.

        Every constructor ends with this call.
        """
        if not any(parameter.is_meta for parameter in self.parameters()):
            self.init_weights()
        if self.supports_gradient_checkpointing and getattr(
            self.config, "gradient_checkpointing", False
        ):
            # transformers 4.10 and older had it in the configuration.
            self.activation_checkpointing_enable()

    def init_weights(self) -> None:
        """Give every module that is not initialised yet its random weights, and tie weights."""
        for module in self.modules():
            if "_initialized" not in vars(module):
                self._init_weights(module)
                module._initialized = True  # type: ignore[assignment]
        self.tie_weights()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        chosen: Any = getattr(self.config, "initializer_range", None)
        std = chosen or getattr(self.config, "init_std", 0.02)
        if isinstance(module, nn.Linear):
            module.weight.normal_(0.0, std)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.Embedding):
            module.weight.normal_(0.0, std)
            if module.padding_idx is not None:
                module.weight[module.padding_idx].zero_()
        elif isinstance(module, nn.LayerNorm):
            module.weight.fill_(1.0)
            module.bias.zero_()

    @classmethod
    def _from_config(cls, config: PreTrainedConfig, **kwargs: Any) -> Any:
        dtype = loading.as_dtype(kwargs.pop("dtype", kwargs.pop("torch_dtype", None)))
        attention = kwargs.pop("attn_implementation", None)
        with torch.inference_mode(False):  # as in from_pretrained
            model = cls(config, **kwargs)
            if attention is not None:
                model.set_attn_implementation(attention)
            return model if dtype is None else model.to(dtype)

    def tied_weights(self) -> dict[str, str]:
        """Return the tied parameters, parameter -> its source, as the configuration asks for."""
        return dict(self._tied_weights_keys) if self.config.tie_word_embeddings else {}

    def tie_weights(self, **_: Any) -> None:
        """Make tied parameters the same object.

        A projection to a vocabulary that has got another size gets a bias of that size too, zero
        for new words.
        """
        for target, source in self.tied_weights().items():
            owner, name = target.rpartition(".")[::2]
            module: Any = self.get_submodule(owner)
            if isinstance(getattr(module, name), nn.Parameter):
                setattr(module, name, self.get_parameter(source))
                if isinstance(module, nn.Linear):
                    _fit_bias(module)

    def refresh(self) -> None:
        """Forget everything packed from the weights; the next pass packs what it needs again.

        Call it after raw writes, which torch does not count: `weight.data[...] = x`,
        `weight.data += x` (as peft merges adapters), and writes through NumPy, DLPack or the
        storage. Optimizers of every kind, load_state_dict, in-place operations under no_grad,
        conversions and replaced parts are followed without it. FASTBERT_CHECK_WEIGHTS=1 in the
        environment finds forgotten calls: every pass then compares all bytes of the weights.
        """
        for module in self.modules():
            for kept in vars(module).values():
                if isinstance(kept, Kept):
                    kept.clear()

    # Parts

    @property
    def base_model(self) -> EncoderModel:
        """The encoder: the attribute that base_model_prefix names, or the model itself.

        In a class of one's own that names none, the one encoder among its parts.
        """
        if self.base_model_prefix:
            return cast("EncoderModel", getattr(self, self.base_model_prefix, self))
        found = [part for part in self.children() if isinstance(part, PreTrainedModel)]
        return cast("EncoderModel", found[0].base_model if len(found) == 1 else self)

    @property
    def transformer_backbone_name(self) -> str:
        """Name of the part that holds the encoder.

        peft asks for it where it tunes a prefix; in classes of transformers it finds it by itself.
        """
        return self.base_model_prefix

    def get_input_embeddings(self) -> nn.Module:
        """Return the table of word embeddings."""
        owner, name = self.base_model.input_embeddings_place()
        table: nn.Module = getattr(owner, name)
        return table

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the table of word embeddings."""
        owner, name = self.base_model.input_embeddings_place()
        setattr(owner, name, value)

    def get_output_embeddings(self) -> nn.Module | None:
        """Return the projection to the vocabulary, None in models without one."""
        return None

    def input_embeddings_place(self) -> tuple[nn.Module, str]:
        """Return the module and the attribute name that hold an encoder's word embeddings."""
        raise NotImplementedError

    def blocks(self) -> Sequence[Block]:
        """Return the layers of an encoder."""
        raise NotImplementedError

    def int8_groups(self) -> Iterator[Group]:
        """Yield what int8 weights replace: projections, by the rows they share.

        Raises:
            ValueError: for a model that has none.
        """
        return encoder_groups(self.base_model.blocks())

    def is_core(self, name: str) -> bool:
        """Return whether a parameter belongs to the embeddings or layers of the encoder.

        A checkpoint must hold those; heads and poolers may be missing from it, since they are made
        anew for a new task.

        Args:
            name: name of the parameter in this model.
        """
        prefix = matching.encoder_prefix(self)
        return name.startswith(prefix) and "pooler." not in name.removeprefix(prefix)

    def first_block(self) -> Block | None:
        """Return the first layer, None in an encoder without layers.

        Every forward asks for it, and building all of blocks() each time would cost too much.
        """
        blocks = self.blocks()
        return blocks[0] if blocks else None

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Module:
        """Change the size of the vocabulary; see `fastbert.modeling.resize.resize`."""
        return resize.resize(self, new_num_tokens, pad_to_multiple_of, mean_resizing)

    def prune_heads(self, heads_to_prune: dict[int, Sequence[int]]) -> None:
        """Remove attention heads for good.

        Args:
            heads_to_prune: layer -> heads to remove, numbered as in the unpruned model.
        """
        self.base_model.prune(heads_to_prune)

    # How it computes

    def set_backend(
        self, backend: str = "auto", strict: bool = False, batch_invariant: bool = False
    ) -> None:
        """Choose the backend.

        Args:
            backend: "auto", "reference", "cpu", "cuda" or "triton".
            strict: whether to raise where the backend cannot serve an op, rather than fall back to
                the reference.
            batch_invariant: whether to leave no gemm to cuBLAS, so that a text has the same bits in
                any batch.

        Raises:
            ValueError: for an unknown backend.
            Unavailable: when the backend cannot run here or, if strict, does not serve every op.
        """
        for module in self.modules():
            if isinstance(module, PreTrainedModel):
                module.backend, module.strict = backend, strict
                module.batch_invariant = batch_invariant
        self.plan()

    def traits(self) -> Traits:
        """Return the shapes and options of the model that the choice of kernels depends on."""
        base = self.base_model
        if base is not self:
            return base.traits()
        return loading.traits_of(self)

    def plan(self, needs_grad: bool = False) -> Plan:
        """Return the Plan for the present device and precision.

        Args:
            needs_grad: whether gradients are wanted, which only the reference gives.

        Raises:
            Unavailable: as in `set_backend`.
        """
        return build_plan(
            self.traits(),
            self.device,
            self.dtype,
            self.backend,
            self.strict,
            needs_grad,
            self.batch_invariant,
        )

    def torch_parts(self) -> list[str]:
        """Say, in clauses, what torch computes in every pass, whatever the Plan says."""
        raise NotImplementedError

    def warn_if_padding_and_no_attention_mask(
        self, input_ids: Tensor | None, attention_mask: Tensor | None
    ) -> None:
        """Warn once that padding tokens are attended to, where that looks like an oversight."""
        pad = self.config.pad_token_id
        if self._warned_padding or attention_mask is not None or input_ids is None or pad is None:
            return
        if bool((input_ids[:, [0, -1]] == pad).any()):
            self._warned_padding = True
            warnings.warn(
                "The input has padding tokens but no attention_mask, so they are attended to; "
                "pass the attention_mask that the tokenizer returns.",
                stacklevel=3,
            )

    # Files

    @overload
    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None = ...,
        *model_args: Any,
        config: PreTrainedConfig | str | os.PathLike[str] | None = ...,
        state_dict: dict[str, Tensor] | None = ...,
        dtype: torch.dtype | str | None = ...,
        backend: str = ...,
        quantization: Any = ...,
        strict: bool = ...,
        batch_invariant: bool = ...,
        ignore_mismatched_sizes: bool = ...,
        output_loading_info: Literal[False] = ...,
        **kwargs: Any,
    ) -> Self: ...

    @overload
    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None = ...,
        *model_args: Any,
        output_loading_info: Literal[True],
        **kwargs: Any,
    ) -> tuple[Self, dict[str, list[str]]]: ...

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None = None,
        *model_args: Any,
        config: PreTrainedConfig | str | os.PathLike[str] | None = None,
        state_dict: dict[str, Tensor] | None = None,
        dtype: torch.dtype | str | None = None,
        backend: str = "auto",
        quantization: Any = None,
        strict: bool = False,
        batch_invariant: bool = False,
        ignore_mismatched_sizes: bool = False,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Self | tuple[Self, dict[str, list[str]]]:
        """Load a checkpoint, tensor by tensor, in the precision asked for.

        Args:
            pretrained_model_name_or_path: a folder or hub id; None with config and state_dict.
            *model_args: further arguments of the constructor.
            config: a configuration, or where to read it, in place of the checkpoint's own.
            state_dict: weights in place of the checkpoint's own; those of the right precision and
                device become the model's own, without a copy.
            dtype: precision of the weights; None or "auto" for that of the file.
            backend: "auto", "reference", "cpu", "cuda" or "triton".
            quantization: "int8" or a QuantizationConfig quantises the layers' projections;
                `quantization_config` is the same.
            strict: whether to raise where a backend cannot serve an op, rather than to fall back to
                the reference and say so in the Plan.
            batch_invariant: whether to leave no gemm to cuBLAS, which picks its algorithm by batch
                size; a text then has the same bits alone and in any batch on a GPU, as it always
                has on the CPU's kernels. `explain` says which holds.
            ignore_mismatched_sizes: whether parameters whose shape differs from the file's get
                random weights, rather than an error.
            output_loading_info: whether to return (model, {"missing_keys", "unexpected_keys",
                "mismatched_keys", "error_msgs"}), without an error for missing weights.
            **kwargs: device or device_map, attn_implementation (accepted), use_safetensors,
                variant, subfolder, revision, cache_dir, token, local_files_only, force_download;
                arguments of the constructor; values that override the configuration's.

        Returns:
            The model in evaluation mode.

        Raises:
            FileNotFoundError: for a path that does not exist or lacks a file.
            ValueError: for a damaged file, or weights of the encoder that are missing (all listed).
            RuntimeError: for tensors of the wrong shape (all listed).
            TypeError: for an unknown argument.
        """
        # Tensors of inference mode have no versions: every pass would compare all their bytes.
        with torch.inference_mode(False):
            model, report = loading.load(
                cls,
                pretrained_model_name_or_path,
                model_args,
                config=config,
                state_dict=state_dict,
                dtype=dtype,
                quantization=kwargs.pop("quantization_config", None) or quantization,
                ignore_mismatched_sizes=ignore_mismatched_sizes,
                tolerate_missing=output_loading_info,
                **kwargs,
            )
        model.set_backend(backend, strict, batch_invariant)
        return (model, report) if output_loading_info else model

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        state_dict: dict[str, Tensor] | None = None,
        max_shard_size: int | str = "50GB",
        safe_serialization: bool = True,
        is_main_process: bool = True,
        push_to_hub: bool = False,
        variant: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Write config.json and the weights, in the form that transformers reads too.

        The save is one transaction: whenever it is cut short, the folder holds the former
        checkpoint or the new one, and whoever reads it meanwhile gets one of them. Tied parameters
        are written once.

        Args:
            save_directory: a folder, made when it is not there.
            state_dict: weights in place of the model's own.
            max_shard_size: bytes, or a text such as "5GB"; larger models are cut into shards.
            safe_serialization: False writes pytorch_model.bin in place of safetensors.
            is_main_process: False writes nothing, since another process writes.
            push_to_hub: must be False; nothing is uploaded from here.
            variant: what stands in the files' names before their ending, as in
                model.fp16.safetensors.
            **kwargs: arguments of transformers that mean nothing here, such as save_function.

        Raises:
            ValueError: for a file in the folder's place, a malformed size, or push_to_hub=True.
            TypeError: for an unknown argument.
            OSError: when a file cannot be written; the former checkpoint is then whole.
        """
        options = SaveOptions(max_shard_size, safe_serialization, variant)
        keywords.check_saving(type(self), push_to_hub, kwargs)
        if is_main_process:
            saving.save(self, save_directory, state_dict, options)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        # Older versions saved position_ids and token_type_ids, which are computed here.
        own = {prefix + name for name, _ in self.named_buffers()}
        for name in [name for name in state_dict if name.startswith(prefix) and name not in own]:
            if name.rpartition(".")[2] in matching.COMPUTED:
                del state_dict[name]
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield names and tensors: parameters (tied ones once for each name), then buffers."""
        yield from self.named_parameters(remove_duplicate=False)
        yield from self.named_buffers(remove_duplicate=False)
