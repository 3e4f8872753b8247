"""CamemBERT (Martin et al. 2019, arXiv:1911.03894): RoBERTa, trained on French."""

from __future__ import annotations

from fastbert.branches.bert import bert_modules
from fastbert.models import roberta


class CamembertConfig(roberta.RobertaConfig):
    """Configuration of CamemBERT: RoBERTa's, with another vocabulary."""

    model_type = "camembert"

    vocab_size: int = 30522


class CamembertEmbeddings(roberta.RobertaEmbeddings):
    """CamemBERT's tables."""


class CamembertLayer(roberta.RobertaLayer):
    """BERT's layer."""


class CamembertPreTrainedModel(roberta.RobertaPreTrainedModel):
    """Base of the CamemBERT models."""

    config_class = CamembertConfig
    _no_split_modules = ["CamembertEmbeddings", "CamembertLayer"]


class CamembertModel(CamembertPreTrainedModel, roberta.RobertaModel):
    """The encoder (or, with is_decoder, decoder) without a head."""

    module_table = bert_modules(embeddings=CamembertEmbeddings, layer=CamembertLayer)


class _CamembertHead(roberta.HeadFirst, CamembertPreTrainedModel):
    encoder_class = CamembertModel


class CamembertForCausalLM(_CamembertHead, roberta.RobertaForCausalLM):
    """Scores of the next token; needs is_decoder=True to be causal."""


class CamembertForMaskedLM(_CamembertHead, roberta.RobertaForMaskedLM):
    """Scores of the vocabulary at every token."""


class CamembertForSequenceClassification(_CamembertHead, roberta.RobertaForSequenceClassification):
    """A label for a whole text, from the first token through a layer of the head's own."""


class CamembertForMultipleChoice(_CamembertHead, roberta.RobertaForMultipleChoice):
    """The best of several texts, from the pooler."""


class CamembertForTokenClassification(_CamembertHead, roberta.RobertaForTokenClassification):
    """A label for every token."""


class CamembertForQuestionAnswering(_CamembertHead, roberta.RobertaForQuestionAnswering):
    """Both ends of an answer."""
