"""The configuration of FlauBERT."""

from __future__ import annotations

from fastbert.modeling.config import PreTrainedConfig


class FlaubertConfig(PreTrainedConfig):
    """Configuration of FlauBERT.

    Attributes:
        pre_norm: LayerNorm before attention and feed-forward rather than after.
        layerdrop: probability that a whole layer is skipped, in training.
        emb_dim, n_layers, n_heads: also known as hidden_size, num_hidden_layers,
            num_attention_heads; the feed-forward part is 4 * emb_dim wide.
        gelu_activation: gelu in its exact erf form; else relu.
        sinusoidal_embeddings: fixed positions rather than learned ones.
        causal: no token sees a later one.
        asm: an adaptive softmax in the language-model head; needs asm_cutoffs and asm_div_value.
        n_langs, use_lang_emb: language embeddings, where there are several.
        embed_init_std, init_std: of random embeddings and of other random weights.
        bos_index, eos_index, pad_index, unk_index, mask_index: special tokens; the first three are
            one with bos_token_id, eos_token_id and pad_token_id.
        summary_type: "first", "last", "mean" or "cls_index": what stands for a whole text.
        start_n_top, end_n_top: answers kept by the beam search of FlaubertForQuestionAnswering.
    """

    model_type = "flaubert"
    attribute_map = {
        "hidden_size": "emb_dim",
        "num_attention_heads": "n_heads",
        "num_hidden_layers": "n_layers",
        "n_words": "vocab_size",
        "bos_index": "bos_token_id",
        "eos_index": "eos_token_id",
        "pad_index": "pad_token_id",
    }

    pre_norm: bool = False
    layerdrop: float = 0.0
    vocab_size: int = 30145
    emb_dim: int = 2048
    n_layers: int = 12
    n_heads: int = 16
    dropout: float = 0.1
    attention_dropout: float = 0.1
    gelu_activation: bool = True
    sinusoidal_embeddings: bool = False
    causal: bool = False
    asm: bool = False
    n_langs: int = 1
    use_lang_emb: bool = True
    max_position_embeddings: int = 512
    embed_init_std: float = 2048**-0.5
    layer_norm_eps: float = 1e-12
    init_std: float = 0.02
    bos_index: int = 0
    eos_index: int = 1
    pad_index: int = 2
    unk_index: int = 3
    mask_index: int = 5
    is_encoder: bool = True
    summary_type: str = "first"
    summary_use_proj: bool = True
    summary_activation: str | None = None
    summary_proj_to_labels: bool = True
    summary_first_dropout: float = 0.1
    start_n_top: int = 5
    end_n_top: int = 5
    mask_token_id: int = 0
    lang_id: int = 0
    pad_token_id: int | None = 2
    bos_token_id: int | None = 0
    eos_token_id: int | None = 1
    tie_word_embeddings: bool = True
