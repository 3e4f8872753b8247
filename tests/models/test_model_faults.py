"""Where transformers 5 is wrong on these families, fastbert does the right thing."""

from __future__ import annotations

import oracle
import pytest
import torch

import fastbert


def test_pre_norm_flaubert_runs_and_returns_attentions() -> None:
    """transformers 5 raises TypeError on every forward (activetigger#1096), 4 an IndexError on
    output_attentions."""
    _, ours = oracle.pair("FlaubertModel", pre_norm=True)
    with torch.no_grad():
        output = ours(oracle.random_ids(), output_attentions=True)
    assert len(output.attentions) == oracle.LAYERS
    sums = output.attentions[0].sum(-1)
    assert torch.allclose(sums, torch.ones_like(sums))


@pytest.mark.parametrize("name", ["BertModel", "CamembertModel"])
def test_attentions_come_whatever_the_attention_implementation(name: str) -> None:
    """transformers 5 returns an empty tuple under its default implementation."""
    _, ours = oracle.shared_pair(name)
    with torch.no_grad():
        output = ours(oracle.random_ids(), output_attentions=True)
    assert [tuple(a.shape) for a in output.attentions] == [(4, 4, 7, 7)] * oracle.LAYERS


def test_generated_camembert_positions_start_behind_padding_idx() -> None:
    """transformers 4.56 and 5 feed 0, 1, 2 to the model, whose first position is 2."""
    _, ours = oracle.pair("CamembertForCausalLM", eos_token_id=None)
    ids = oracle.random_ids()[:1]
    with torch.no_grad():
        greedy = ours.generate(ids, max_new_tokens=5)
        expected = ids
        for _ in range(5):
            token = ours(expected, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
            expected = torch.cat([expected, token], dim=1)
    assert torch.equal(greedy, expected)
    mask = torch.tensor([[0, 0, 1, 1]])
    assert ours.base_model.positions_from_mask(mask).tolist() == [[1, 1, 2, 3]]


def test_camembert_head_is_tied_after_loading(tmp_path) -> None:
    """transformers 5.3 left the head untied (#44671)."""
    _, ours = oracle.pair("CamembertForMaskedLM")
    ours.save_pretrained(tmp_path)
    again = fastbert.CamembertForMaskedLM.from_pretrained(tmp_path)
    assert again.lm_head.decoder.weight is again.roberta.embeddings.word_embeddings.weight
    assert again.lm_head.decoder.bias is again.lm_head.bias


def test_multiple_choice_has_its_pooler() -> None:
    """transformers 5 lost it for a while (#47147)."""
    _, ours = oracle.shared_pair("CamembertForMultipleChoice")
    assert ours.roberta.pooler is not None


def test_flaubert_pad_index_is_heeded() -> None:
    """transformers 5 ignores it, 4 leaves pad_token_id behind."""
    config = fastbert.FlaubertConfig(pad_index=7, vocab_size=30, emb_dim=16, n_layers=1, n_heads=2)
    assert config.pad_token_id == config.pad_index == 7
    assert fastbert.FlaubertModel(config).embeddings.padding_idx == 7
    assert fastbert.FlaubertConfig.from_dict(config.to_dict()).pad_index == 7


def test_adaptive_softmax_of_flaubert_works() -> None:
    """asm=True raises in every version of transformers."""
    settings = {"asm": True, "asm_cutoffs": [10, 30], "asm_div_value": 2.0}
    config = fastbert.FlaubertConfig(**oracle.FAMILIES["Flaubert"], **settings)
    model = fastbert.FlaubertWithLMHeadModel(config).double().eval()
    ids = oracle.random_ids()
    with torch.no_grad():
        output = model(ids, labels=ids)
    total = output.logits.exp().sum(-1)
    assert torch.allclose(total, torch.ones_like(total))
    picked = output.logits.gather(-1, ids[..., None]).mean()
    assert torch.allclose(output.loss, -picked)
    with pytest.raises(ValueError, match="asm_cutoffs"):
        fastbert.FlaubertWithLMHeadModel(fastbert.FlaubertConfig(asm=True, emb_dim=16))


@pytest.mark.parametrize("name", ["BertModel", "CamembertModel", "RemBertModel", "FlaubertModel"])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fully_masked_rows_are_finite(name: str, backend: str, dtype: torch.dtype) -> None:
    """transformers' sdpa gave NaN in bfloat16 (#31035)."""
    _, ours = oracle.pair(name)
    ours = ours.to(dtype)
    ours.set_backend(backend)
    mask = oracle.padded_mask()
    mask[0] = 0
    with torch.no_grad():
        output = ours(oracle.random_ids(), attention_mask=mask)
        alone = ours(oracle.random_ids()[1:], attention_mask=mask[1:])
    for value in output.to_tuple():
        assert bool(torch.isfinite(value).all())
    kept = output.last_hidden_state[1:][mask[1:] != 0]
    assert torch.equal(kept, alone.last_hidden_state[mask[1:] != 0])


def test_nan_in_weights_shows() -> None:
    _, ours = oracle.pair("BertModel")
    with torch.no_grad():
        ours.encoder.layer[1].output.dense.weight[3, 5] = float("nan")
        assert bool(ours(oracle.random_ids()).last_hidden_state.isnan().any())


def test_over_long_camembert_input_says_how_many_tokens_fit() -> None:
    model = fastbert.CamembertModel(
        fastbert.CamembertConfig(
            vocab_size=40, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=8, max_position_embeddings=514,
        )
    ).eval()  # fmt: skip
    with torch.no_grad():
        assert model(torch.full((1, 512), 5)).last_hidden_state.shape == (1, 512, 8)
        with pytest.raises(ValueError, match=r"513 tokens long.*positions for 512"):
            model(torch.full((1, 513), 5))


@pytest.mark.parametrize("name", ["CamembertModel", "BertModel", "RemBertModel", "FlaubertModel"])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_padding_takes_no_position(name: str, backend: str) -> None:
    """A grid may be wider than the model's positions, as long as every text has its own."""
    _, ours = oracle.pair(name)
    ours = ours.float()
    ours.set_backend(backend)
    pad, longest = ours.config.pad_token_id, ours.longest()
    text = torch.randint(6, 60, (1, longest), generator=torch.Generator().manual_seed(1))
    gap = torch.full((1, 9), pad)
    with torch.no_grad():
        alone = ours(text).last_hidden_state
        right = torch.cat([text, gap], dim=1)
        got = ours(right, attention_mask=(right != pad).long()).last_hidden_state
        assert torch.equal(got[:, :longest], alone)
        assert not got[:, longest:].any()
        left = torch.cat([gap, text], dim=1)
        mask = (left != pad).long()
        if name == "CamembertModel":
            # Its positions count ids that are not padding, with or without a mask.
            got = ours(left, attention_mask=mask).last_hidden_state[:, 9:]
            assert torch.equal(got, alone)
            assert bool(torch.isfinite(ours(left).last_hidden_state).all())
        else:
            positions = ours.positions_from_mask(mask)
            got = ours(left, attention_mask=mask, position_ids=positions).last_hidden_state
            assert torch.equal(got[:, 9:], alone)
            with pytest.raises(ValueError, match=f"{longest + 9} tokens long"):
                ours(left, attention_mask=mask)
        more = torch.cat([text, text[:, :2], gap], dim=1)
        with pytest.raises(ValueError, match=f"{longest + 2} tokens long.*for {longest};"):
            ours(more, attention_mask=(more != pad).long())


def test_what_a_forward_refuses() -> None:
    _, ours = oracle.shared_pair("BertModel")
    ids = oracle.random_ids()
    embeds = torch.zeros(4, 7, oracle.HIDDEN, dtype=torch.float64)
    with torch.no_grad():
        with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
            ours()
        with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
            ours(ids, inputs_embeds=embeds)
        with pytest.raises(TypeError, match="no argument 'attention_masks'"):
            ours(ids, attention_masks=ids)
        with pytest.raises(IndexError, match=r"input_ids reach from .* to 61.*tokenizer"):
            ours(torch.full((1, 3), 61))
        with pytest.raises(ValueError, match=r"attention_mask must have shape \(4, 7\)"):
            ours(ids, attention_mask=torch.ones(4, 6))
        with pytest.raises(ValueError, match="indices must have shape"):
            ours(ids, token_type_ids=torch.zeros(3, 7, dtype=torch.long))
        with pytest.raises(ValueError, match="head_mask must have shape"):
            ours(ids, head_mask=torch.ones(5, 4))
        _, tower = oracle.shared_pair("AlignTextModel")
        with pytest.raises(TypeError, match="no argument encoder_hidden_states"):
            tower(ids, encoder_hidden_states=embeds)
        _, decoder = oracle.shared_pair("BertLMHeadModel")
        with pytest.raises(ValueError, match="no cross-attention"):
            decoder(ids, encoder_hidden_states=embeds)
        _, flaubert = oracle.shared_pair("FlaubertModel")
        with pytest.raises(ValueError, match="one value for every token"):
            flaubert(ids, attention_mask=torch.ones(4, 7, 7))
        with pytest.raises(ValueError, match="lengths must hold 4 values of at most 7"):
            flaubert(ids, lengths=torch.tensor([9, 1, 1, 1]))
    with pytest.raises(ValueError, match="multiple of num_attention_heads"):
        fastbert.BertModel(fastbert.BertConfig(hidden_size=10, num_attention_heads=3))
    with pytest.raises(ValueError, match="needs a decoder"):
        fastbert.BertModel(fastbert.BertConfig(add_cross_attention=True))
    with pytest.raises(NotImplementedError, match="is_encoder=False"):
        fastbert.FlaubertModel(fastbert.FlaubertConfig(is_encoder=False))


def test_no_texts_give_an_empty_result() -> None:
    for name in ("BertModel", "CamembertModel", "FlaubertModel"):
        _, ours = oracle.shared_pair(name)
        empty = torch.zeros(0, 7, dtype=torch.long)
        with torch.no_grad():
            assert ours(empty).last_hidden_state.shape == (0, 7, oracle.HIDDEN)
            masked = ours(empty, attention_mask=empty)
            assert masked.last_hidden_state.shape == (0, 7, oracle.HIDDEN)
