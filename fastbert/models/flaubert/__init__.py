"""FlauBERT (Le et al. 2019, arXiv:1912.05372): XLM's encoder and heads, trained on French."""
