"""Metrics of generated texts: exact match and token F1 as for SQuAD, BLEU-4 and CIDEr as for COCO's captions.

BLEU-4 is sacrebleu's, without smoothing. CIDEr (CIDEr-D) is pycocoevalcap's, the code of COCO's own server: it has
had no release since 2020, but is pure Python, and the kept port of it (aac-metrics) needs sentence-transformers.
Both read words of nltk's Treebank tokenizer without COCO's list of punctuation, in place of COCO's Java program.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from adapter.errors import AdapterError
from train.evaluate.intervals import Figure, mean, resampled

CAPTION_METRICS = (
    "BLEU-4 by sacrebleu without smoothing, CIDEr-D by pycocoevalcap; words by nltk's Treebank tokenizer, where "
    "COCO's server runs Stanford's in Java"
)
# What COCO's evaluation leaves out.
_PUNCTUATION = {"''", "'", "``", "`", "(", ")", "{", "}", ".", "?", "!", ",", ":", "-", "--", "...", ";", '"'}


def normalised(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation and English articles (SQuAD's evaluation).

    Unlike there, a text of nothing else keeps them: the answers "A" and "-" are not empty ones.
    """
    plain = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split() or plain.split() or text.lower().split()


def exact_match(answer: str, wanted: str) -> bool:
    return normalised(answer) == normalised(wanted)


def token_f1(answer: str, wanted: str) -> float:
    """0 to 1: the harmonic mean of precision and recall of the normalised words."""
    found, right = normalised(answer), normalised(wanted)
    if not found or not right:
        return float(found == right)
    shared = sum((Counter(found) & Counter(right)).values())
    return 2 * shared / (len(found) + len(right))


def caption_words(text: str) -> str:
    """The words of a caption in lower case, separated by spaces."""
    words = _libraries()["tokenize"](text.lower().replace("\n", " "))
    return " ".join(word for word in words if word not in _PUNCTUATION)


def caption_scores(captions: Sequence[str], references: Sequence[Sequence[str]], seed: int) -> dict[str, Figure]:
    """BLEU-4 in percent, and CIDEr in COCO's scale (a perfect caption has about 10), times 100.

    references: one or more of each picture. CIDEr's word weights are those of all references here, so that it
    means little for a few pictures, and the figures of two sets of pictures do not compare.
    """
    words = [caption_words(caption) for caption in captions]
    wanted = [[caption_words(text) for text in texts] for texts in references]
    libraries = _libraries()
    bleu = libraries["BLEU"]
    metric = bleu(tokenize="none", smooth_method="none", force=True)
    statistics = []
    for caption, texts in zip(words, wanted, strict=True):
        score = metric.corpus_score([caption], [[text] for text in texts])
        statistics.append([score.sys_len, score.ref_len, *score.counts, *score.totals])

    def corpus_bleu(total: np.ndarray) -> float:
        numbers = [int(number) for number in total]
        score = bleu.compute_bleu(numbers[2:6], numbers[6:], numbers[0], numbers[1], smooth_method="none")
        return float(score.score)

    keys = range(len(words))
    _, cider = libraries["Cider"]().compute_score({i: wanted[i] for i in keys}, {i: [words[i]] for i in keys})
    return {
        "BLEU-4": resampled(np.array(statistics), corpus_bleu, seed),
        "CIDEr": mean([float(value) for value in cider], seed, scale=100),
    }


def _libraries() -> dict[str, Any]:
    try:
        from nltk.tokenize.treebank import TreebankWordTokenizer
        from pycocoevalcap.cider.cider import Cider
        from sacrebleu.metrics import BLEU
    except ImportError as error:
        raise AdapterError(
            "Captions are scored by nltk, pycocoevalcap and sacrebleu, and one of them is missing. "
            "Install them: pip install 'llama-adapter[evaluate]'.",
            str(error),
        ) from error
    return {"tokenize": TreebankWordTokenizer().tokenize, "Cider": Cider, "BLEU": BLEU}
