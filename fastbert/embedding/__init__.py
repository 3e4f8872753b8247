"""Texts to vectors: SentenceEncoder and pooling."""
