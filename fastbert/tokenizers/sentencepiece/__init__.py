"""Tokenizers over SentencePiece models, read in Python or run by the `tokenizers` library."""
