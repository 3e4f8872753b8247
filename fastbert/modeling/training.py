"""What training loops ask of a model: its loss, recomputed activations, gradients of its inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn

from fastbert.layers.recomputing import Recompute
from fastbert.modeling.losses import LOSSES


class Trainable(nn.Module):
    """The part of a model that only training needs, with transformers' names.

    Attributes:
        accepts_loss_kwargs: whether transformers' Trainer gives the loss num_items_in_batch, the
            number of labels in all batches whose gradients it adds up. So it is for heads with a
            label for each token. Where each text has one, the mean over the batches is the same.
        loss_type: transformers' name of the head's `loss_function`; None where it has none.
        supports_gradient_checkpointing: whether layers can be recomputed in the backward pass.
        gradient_checkpointing: whether layers are recomputed in the backward pass.
    """

    accepts_loss_kwargs: ClassVar[bool] = False
    loss_type: ClassVar[str | None] = None
    supports_gradient_checkpointing: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self._recompute = Recompute()
        self._input_grads_hook: Any = None

    @property
    def loss_function(self) -> Callable[..., Tensor]:
        """The loss that forward computes where labels are given; may be set.

        It is called with transformers' arguments for `loss_type`: (logits, labels, vocab_size) for
        words, (labels, pooled_logits, config) for whole texts, (logits, labels, config) for tokens,
        (start_logits, end_logits, start_positions, end_positions) for answers, and with
        num_items_in_batch or shift_labels where forward was given them.

        Raises:
            AttributeError: for a model without such a loss.
        """
        # nn.Module keeps a loss that is a module among its children, past any setter.
        chosen = self._modules.get("loss_function") or vars(self).get("_loss_function")
        if chosen is not None:
            function: Callable[..., Tensor] = chosen
            return function
        if self.loss_type is None:
            raise AttributeError(f"{type(self).__name__} has no loss function.")
        return LOSSES[self.loss_type]

    @loss_function.setter
    def loss_function(self, value: Callable[..., Tensor] | None) -> None:
        self._loss_function = value

    def tied_weights(self) -> dict[str, str]:
        """Return the tied parameters, parameter -> its source, as the configuration asks for."""
        return {}

    @property
    def _keys_to_ignore_on_save(self) -> list[str] | None:
        # Trainer does not miss these when it loads a checkpoint again.
        return list(self.tied_weights()) or None

    # Activations

    @property
    def is_activation_checkpointing(self) -> bool:
        """Whether some part of the model recomputes layers in the backward pass."""
        return any(getattr(module, "gradient_checkpointing", False) for module in self.modules())

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Older name of is_activation_checkpointing."""
        return self.is_activation_checkpointing

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: dict[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Recompute the activations of layers in the backward pass rather than keep them.

        Args:
            activation_checkpointing_kwargs: passed to torch.utils.checkpoint.checkpoint;
                use_reentrant is False unless it is given.
            every_n_layers: recompute every n-th layer only, from the first one on.
            offload: keep what a layer starts from in the main memory, rather than on an
                accelerator.

        Raises:
            ValueError: for a class that does not support it, or every_n_layers below 1.
        """
        if not self.supports_gradient_checkpointing:
            raise ValueError(f"{type(self).__name__} does not support gradient checkpointing.")
        if every_n_layers < 1:
            raise ValueError(f"every_n_layers must be at least 1, but is {every_n_layers}.")
        options = {"use_reentrant": False, **(activation_checkpointing_kwargs or {})}
        self._set_checkpointing(True, Recompute(options, every_n_layers, offload))

    def activation_checkpointing_disable(self) -> None:
        """Keep the activations of layers for the backward pass again."""
        self._set_checkpointing(False, Recompute())

    def gradient_checkpointing_enable(
        self,
        gradient_checkpointing_kwargs: dict[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Older name of activation_checkpointing_enable."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, every_n_layers, offload)

    def gradient_checkpointing_disable(self) -> None:
        """Older name of activation_checkpointing_disable."""
        self.activation_checkpointing_disable()

    def _set_checkpointing(self, enabled: bool, recompute: Recompute) -> None:
        for module in self.modules():
            if isinstance(module, Trainable):
                module.gradient_checkpointing = enabled
                module._recompute = recompute

    # Gradients of the inputs

    def get_input_embeddings(self) -> nn.Module:
        """Return the table of word embeddings."""
        raise NotImplementedError

    def enable_input_require_grads(self) -> None:
        """Make the word embeddings' output require gradients, for adapters on frozen weights."""
        self.disable_input_require_grads()
        self._input_grads_hook = self.get_input_embeddings().register_forward_hook(
            lambda _module, _inputs, output: output.requires_grad_(True)
        )

    def disable_input_require_grads(self) -> None:
        """Undo enable_input_require_grads."""
        if self._input_grads_hook is not None:
            self._input_grads_hook.remove()
            self._input_grads_hook = None
