"""Arguments of transformers' from_pretrained and save_pretrained that programs pass everywhere.

Some say how weights travel, and nothing of what the model computes: they are taken and change
nothing. Others ask for something that is not to be had here: they are refused unless they ask for
nothing.
"""

from __future__ import annotations

from typing import Any

# How weights are read, placed or fetched there.
_WITHOUT_MEANING = frozenset(
    {
        "_commit_hash",
        "_fast_init",
        "_from_auto",
        "_from_pipeline",
        "allow_all_kernels",
        "code_revision",
        "disable_mmap",
        "experts_implementation",
        "kernel_config",
        "low_cpu_mem_usage",
        "max_memory",
        "mirror",
        "offload_buffers",
        "offload_folder",
        "offload_state_dict",
        "proxies",
        "resume_download",
        "tqdm_class",
        "trust_remote_code",
        "use_flash_attention_2",
        "use_kernels",
        "user_agent",
        "weights_only",
    }
)
# What they ask for, as the end of a sentence.
_REFUSED = {
    "adapter_kwargs": "adapters are loaded with peft.PeftModel.from_pretrained",
    "device_mesh": "a model lives on one device here",
    "distributed_config": "a model lives on one device here",
    "from_flax": "weights of Flax are converted by transformers 4",
    "from_tf": "weights of TensorFlow are converted by transformers 4",
    "fusion_config": "the Plan fuses what can be fused",
    "generation_config": "set it on the model: model.generation_config = ...",
    "gguf_file": "GGUF files are not read here",
    "key_mapping": "rename the tensors and pass them as state_dict=",
    "load_in_4bit": "there are no 4-bit weights here; quantization='int8' is what there is",
    "load_in_8bit": "bitsandbytes is not used here; pass quantization='int8'",
    "tp_plan": "a model lives on one device here",
    "tp_size": "a model lives on one device here",
}
_SAVING = frozenset(
    {
        "save_function",
        "save_original_format",
        "save_peft_format",
        "token",
        "use_auth_token",
    }
)


def settle(caller: str, kwargs: dict[str, Any]) -> None:
    """Take out of the arguments of from_pretrained those that mean nothing here.

    Args:
        caller: the class, for messages.
        kwargs: changed in place; `use_auth_token` becomes `token`.

    Raises:
        ValueError: for one that asks for what is not to be had.
    """
    for name in _WITHOUT_MEANING & kwargs.keys():
        del kwargs[name]
    for name in _REFUSED.keys() & kwargs.keys():
        if kwargs.pop(name):
            raise ValueError(f"{caller}.from_pretrained does not take {name}: {_REFUSED[name]}.")
    if "use_auth_token" in kwargs:
        kwargs.setdefault("token", kwargs.pop("use_auth_token"))


def check_saving(cls: type, push_to_hub: object, kwargs: dict[str, Any]) -> None:
    """Refuse arguments of save_pretrained that have no meaning anywhere, and uploads.

    Raises:
        ValueError: for push_to_hub.
        TypeError: for an unknown argument.
    """
    if push_to_hub:
        raise ValueError(
            "fastbert uploads nothing: save into a folder, then use huggingface_hub.upload_folder."
        )
    if kwargs.pop("distributed_checkpoint", False):
        raise ValueError("distributed_checkpoint is not to be had: a model is saved as a whole.")
    unknown = sorted(kwargs.keys() - _SAVING)
    if unknown:
        raise TypeError(f"{cls.__name__}.save_pretrained has no argument {', '.join(unknown)}.")
