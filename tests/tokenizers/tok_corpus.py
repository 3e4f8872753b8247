"""The texts of the tokenizer comparisons: made by arithmetic, so that every Python makes the same.

Imported by the tests and, in another environment, by make_golden.py; needs no other package.
"""

from __future__ import annotations

import hashlib

FRENCH = (
    "L'été dernier, j'ai mangé un délicieux fromage près de l'œuvre d'Émile à Besançon",
    "Aujourd'hui, qu'est-ce que c'est que ça ? Où vas-tu, là-bas ? « Peut-être » dit-elle",
    "Le cœur de l'ex-président s'arrêta à 14h30, le 1er août 1999, n° 5 rue de la Paix",
    "Il n'y a pas d'œufs ni de bœuf chez M. Dupont, Mme. Lefèvre et le Dr. Müller, etc.",
    "Jusqu'où ira-t-on ? Presqu'île, prud'homme, grand'mère et quelqu'un d'entr'eux",
    "CE TEXTE EST EN MAJUSCULES : ÉLÈVE, GARÇON, NOËL, ŒUVRE, ÆQUO, AÏEUL",
    "Le prix est de 1 234,56 € (soit 1.500 $ ou 12%) pour 3,5 kg de pommes de terre...",
    "The quick brown fox didn't jump over the lazy dog's back; it's what we've said!",
    "Les trouvailles, les retrouvailles et l'anticonstitutionnellement inexprimable",
    "site.exemple.fr/page?id=42&x=y et contact@exemple.org sont des adresses",
)
WORDS = " ".join(FRENCH).split()
PIECES = (
    "l'", "d’", "qu'", "aujourd’hui", "'s", "''", "``", "“oui”", "‘non’", "«", "»", "„bas“", "'",
    "œ", "Œuvre", "æ", "ﬁ", "ﬂeur", "ﬀ", "ĳ", "ß", "İstanbul", "ΣΊΣΥΦΟΣ", "ς", "é", "e\u0301",
    "a\u0300\u0323", "ñ", "n\u0303", "Å", "A\u030a", "\u212b", "ç", "c\u0327", "ệ", "가", "각",
    "\u1100\u1161", "日本語", "東京", "ひらがな", "カタカナ", "ﾊﾝｶｸ", "中文测试", "한국어", "𠀀𠀁",
    "Привет", "мир", "שלום", "مرحبا", "हिन्दी", "नमस्ते", "ไทย", "αβγ", "😀", "👩‍👩‍👧", "🇫🇷", "👍🏽",
    "❤️", "①", "Ⅷ", "½", "²", "㎏", "℃", "№", "™", "…", "—", "–", "-", "--", "•", "·", "。", "，",
    "、", "：", "；", "？", "！", "（", "）", "《", "》", "「", "」", "【", "】", "〈", "〉",
    "～", "％",
    "１２３", "ＡＢＣ", "．", "━", "∶", "±", "≠", "∞", "§", "$", "€", "£", "¥", "+", "=", "^", "`",
    "~", "|", "<", ">", "<<", "&", "&amp;", "#", "@", "\\", "/", "_", "__", "*", "(", ")", "[", "]",
    "{", "}", '"', "!", "?", "?!", "...", "..", ".", ",", ";", ":", "%", "0", "1", "42", "3.14",
    "1,5", "1\u00a0000", "12:30", "2024-01-31", "a.b.c", "M.", "etc.", "p.ex.", "J.-C.", "n°", "▁",
    "▁▁", "##", "##ing", "a##b", "</w>", "x</w>", "\ufeff", "\u00ad", "xx\u00adyy", "\u200d",
    "\u2028", "\u2029", "\x85", "\x00", "\x01", "\x07", "\x1f", "\x7f", "\x9f", "\ufffd", "\ue000",
    "\u0301", "\u20dd", "\u202e", "\u2060", "\u180e", "supercalifragilisticexpialidocious" * 4,
)  # fmt: skip
SPACES = (
    " ", " ", " ", " ", " ", "", "", "  ", "   ", "\t", "\n", "\r\n", "\u00a0", "\u2009", "\u200b",
    "\u3000", "\u202f", " \u200b ", "\x0b", "\x0c",
)  # fmt: skip
SPECIALS = (
    "<s>", "</s>", "<unk>", "<pad>", "<mask>", "<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED", "[CLS]",
    "[SEP]", "[PAD]", "[UNK]", "[MASK]", "<special0>", "<special1>", "<special9>", "[mask]",
    "[ MASK ]", "<mask", "mask>", "<S>",
)  # fmt: skip
LETTERS = "abcdefghijklmnopqrstuvwxyzéèêëàâùûîïôçœABCDEFGHIJKLMÉÀ0123456789'-.,!? "
RANGES = ((0x20, 0x17F), (0x300, 0x36F), (0x370, 0x4FF), (0x2000, 0x206F), (0x3000, 0x30FF),
          (0x4E00, 0x4E80), (0xAC00, 0xAC80), (0xFF00, 0xFFEF), (0x1F600, 0x1F640))  # fmt: skip


class Dice:
    """A linear congruential generator (Knuth's MMIX constants); the high bits are used."""

    def __init__(self, seed: int) -> None:
        self.state = seed

    def below(self, n: int) -> int:
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) % 2**64
        return (self.state >> 33) % n

    def pick(self, items: tuple[str, ...] | list[str] | str) -> str:
        return items[self.below(len(items))]


def _one(dice: Dice) -> str:
    kind = dice.below(10)
    if kind < 3:
        parts = [dice.pick(WORDS) for _ in range(1 + dice.below(12))]
    elif kind < 6:
        pool = (WORDS, WORDS, PIECES, PIECES, SPECIALS)
        parts = [dice.pick(pool[dice.below(5)]) for _ in range(1 + dice.below(10))]
    elif kind < 7:
        parts = [dice.pick(SPECIALS if dice.below(2) else WORDS) for _ in range(1 + dice.below(6))]
    elif kind < 9:
        return "".join(dice.pick(LETTERS) for _ in range(1 + dice.below(40)))
    else:
        text = ""
        for _ in range(1 + dice.below(20)):
            low, high = RANGES[dice.below(len(RANGES))]
            text += chr(low + dice.below(high - low))
        return text
    text = dice.pick(SPACES) if dice.below(4) == 0 else ""
    for part in parts:
        text += part + dice.pick(SPACES)
    return text if dice.below(3) == 0 else text.rstrip(" ")


def texts(count: int = 3200) -> list[str]:
    """`count` texts: the fixed ones first (each piece alone, the sentences), then random ones."""
    fixed = ["", " ", "  ", "\n", "\t \n", "a", "é", *FRENCH, *PIECES, *SPECIALS]
    fixed += [f"mot{piece}mot" for piece in PIECES] + [f"un {piece} deux" for piece in PIECES]
    fixed += [f"un {one}deux {one} " for one in SPECIALS]
    dice = Dice(20240131)
    return (fixed + [_one(dice) for _ in range(max(0, count - len(fixed)))])[:count]


def training_lines() -> list[str]:
    """Sentences to train the small vocabularies on: the French words in random order."""
    dice = Dice(7)
    lines = []
    for index in range(4000):
        words = [dice.pick(WORDS) for _ in range(5 + dice.below(10))]
        if index % 7 == 0:
            words.insert(dice.below(len(words)), dice.pick(PIECES[:60]))
        lines.append(" ".join(words))
    return lines


def digest(value: str) -> str:
    """Six hexadecimal digits of a hash: enough to catch any real difference."""
    return hashlib.blake2b(value.encode("utf-8", "surrogatepass"), digest_size=3).hexdigest()
