"""XLM-RoBERTa (Conneau et al. 2020, arXiv:1911.02116): RoBERTa, trained on a hundred languages."""

from __future__ import annotations

from fastbert.branches.bert import bert_modules
from fastbert.models import roberta


class XLMRobertaConfig(roberta.RobertaConfig):
    """Configuration of XLM-RoBERTa: RoBERTa's, with another vocabulary."""

    model_type = "xlm-roberta"

    vocab_size: int = 30522


class XLMRobertaEmbeddings(roberta.RobertaEmbeddings):
    """XLM-RoBERTa's tables."""


class XLMRobertaLayer(roberta.RobertaLayer):
    """BERT's layer."""


class XLMRobertaPreTrainedModel(roberta.RobertaPreTrainedModel):
    """Base of the XLM-RoBERTa models."""

    config_class = XLMRobertaConfig
    _no_split_modules = ["XLMRobertaEmbeddings", "XLMRobertaLayer"]


class XLMRobertaModel(XLMRobertaPreTrainedModel, roberta.RobertaModel):
    """The encoder (or, with is_decoder, decoder) without a head."""

    module_table = bert_modules(embeddings=XLMRobertaEmbeddings, layer=XLMRobertaLayer)


class _XLMRobertaHead(roberta.HeadFirst, XLMRobertaPreTrainedModel):
    encoder_class = XLMRobertaModel


class XLMRobertaForCausalLM(_XLMRobertaHead, roberta.RobertaForCausalLM):
    """Scores of the next token; needs is_decoder=True to be causal."""


class XLMRobertaForMaskedLM(_XLMRobertaHead, roberta.RobertaForMaskedLM):
    """Scores of the vocabulary at every token."""


class XLMRobertaForSequenceClassification(
    _XLMRobertaHead, roberta.RobertaForSequenceClassification
):
    """A label for a whole text, from the first token through a layer of the head's own."""


class XLMRobertaForMultipleChoice(_XLMRobertaHead, roberta.RobertaForMultipleChoice):
    """The best of several texts, from the pooler."""


class XLMRobertaForTokenClassification(_XLMRobertaHead, roberta.RobertaForTokenClassification):
    """A label for every token."""


class XLMRobertaForQuestionAnswering(_XLMRobertaHead, roberta.RobertaForQuestionAnswering):
    """Both ends of an answer."""
