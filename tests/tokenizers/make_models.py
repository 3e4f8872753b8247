"""Trains the small vocabularies of the tokenizer tests into golden/models.tar.xz.

Run once, with the test environment: python tests/tokenizers/make_models.py. The result is
committed: the recorded answers of make_golden.py hold for exactly these files.
"""

from __future__ import annotations

import io
import json
import lzma
import tarfile
from pathlib import Path

import sentencepiece
import tok_corpus
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

ARCHIVE = Path(__file__).parent / "golden" / "models.tar.xz"
SPECIALS = ["<s>", "</s>", "<pad>", "<unk>", *(f"<special{i}>" for i in range(10))]


def spm(**options: object) -> bytes:
    """A sentencepiece model on the training lines."""
    writer = io.BytesIO()
    settings = {
        "vocab_size": 900,
        "model_type": "unigram",
        "character_coverage": 0.9995,
        "num_threads": 1,
        "hard_vocab_limit": False,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(tok_corpus.training_lines()),
        model_writer=writer,
        **(settings | options),
    )
    return writer.getvalue()


def wordpiece(lowercase: bool) -> bytes:
    """A vocab.txt in BERT's layout."""
    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(
        vocab_size=900, special_tokens=specials, show_progress=False
    )
    trained.train_from_iterator(tok_corpus.training_lines(), trainer)
    vocab = trained.get_vocab()
    return "".join(f"{token}\n" for token in sorted(vocab, key=vocab.__getitem__)).encode()


def flaubert() -> tuple[bytes, bytes]:
    """vocab.json and merges.txt in FlauBERT's layout. As in the real files, some products of
    merges are not in the vocabulary, and merges carry a frequency."""
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.BpeTrainer(vocab_size=900, end_of_word_suffix="</w>", show_progress=False)
    trained.train_from_iterator(tok_corpus.training_lines(), trainer)
    state = json.loads(trained.to_str())["model"]
    merges = [tuple(m.split()) if isinstance(m, str) else tuple(m) for m in state["merges"]]
    tokens = sorted(state["vocab"], key=state["vocab"].__getitem__)
    dropped = {"".join(merge) for merge in merges[3::17]}
    kept = SPECIALS + [token for token in tokens if token not in dropped]
    vocab = json.dumps({token: i for i, token in enumerate(kept)}, ensure_ascii=False)
    lines = "".join(f"{a} {b} {1000 - i}\n" for i, (a, b) in enumerate(merges))
    return vocab.encode(), lines.encode()


def main() -> None:
    """Writes the archive."""
    fairseq = {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1}
    rembert = {
        "pad_id": 0, "pad_piece": "[PAD]", "unk_id": 1, "unk_piece": "<unk>", "bos_id": 2,
        "bos_piece": "<s>", "eos_id": 3, "eos_piece": "</s>",
        "control_symbols": ["[CLS]", "[SEP]", "[MASK]"], "user_defined_symbols": ["<sym>"],
        "normalization_rule_name": "nmt_nfkc",
    }  # fmt: skip
    vocab, merges = flaubert()
    contents = {
        "camembert/sentencepiece.bpe.model": spm(**fairseq),
        "camembert-bpe/sentencepiece.bpe.model": spm(**fairseq, model_type="bpe"),
        "camembert-bytes/sentencepiece.bpe.model": spm(
            unk_id=0, bos_id=-1, eos_id=-1, pad_id=-1, byte_fallback=True, vocab_size=1100
        ),
        "camembert-identity/sentencepiece.bpe.model": spm(
            **fairseq, normalization_rule_name="identity", remove_extra_whitespaces=False
        ),
        "rembert/sentencepiece.model": spm(**rembert),
        "rembert-plain/sentencepiece.model": spm(**fairseq),
        "bert/vocab.txt": wordpiece(True),
        "bert-cased/vocab.txt": wordpiece(False),
        "flaubert/vocab.json": vocab,
        "flaubert/merges.txt": merges,
    }
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        for name, content in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    ARCHIVE.parent.mkdir(exist_ok=True)
    ARCHIVE.write_bytes(lzma.compress(plain.getvalue(), preset=9 | lzma.PRESET_EXTREME))
    print(f"{ARCHIVE}: {ARCHIVE.stat().st_size} bytes, {len(contents)} files")


if __name__ == "__main__":
    main()
