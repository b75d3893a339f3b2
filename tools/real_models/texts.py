"""Sentence embedding (all-MiniLM-L6-v2): Debian's short descriptions of packages; neighbours should be of the same section."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from tools.packages import FOLDER
from tools.real_models.descriptions import FILE
from tools.real_models.export_bert import LENGTH
from tools.real_models.model import Data, Examples

#: Tokens with a meaning of their own.
PADDING, UNKNOWN, BEGIN, END = 0, 100, 101, 102
BATCH = 8


def data(train: int, test: int) -> Data:
    """The same number of descriptions of each section; packages of one source often share theirs, so each text occurs once."""
    by_section = defaultdict(list)
    sections: dict[str, str] = {}
    for line in FILE.read_text(encoding="utf-8").splitlines():
        section, _, text = line.partition("\t")
        sections.setdefault(text.partition(" - ")[0].partition(" (")[0], section)
    for text, section in sections.items():
        by_section[section].append(text)
    random = np.random.default_rng(0)
    shuffled = [[texts[i] for i in random.permutation(len(texts))] for texts in by_section.values()]
    rows = [
        (text, section)
        for texts in zip(*shuffled, strict=False)
        for text, section in zip(texts, by_section, strict=True)
    ]
    return Data(_batches(rows[test:][:train]), _batches(rows[:test]), _neighbours_of_same_section)


def _batches(rows: list[tuple[str, str]]) -> list[Examples]:
    vocabulary = json.loads((FOLDER / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    batches = []
    for start in range(0, len(rows), BATCH):
        cut = rows[start : start + BATCH]
        tokens = [_tokens(text, vocabulary) for text, _ in cut]
        rest = [LENGTH - len(row) for row in tokens]
        arrays = {
            "input_ids": np.array([row + [PADDING] * n for row, n in zip(tokens, rest, strict=True)], np.int64),
            "attention_mask": np.array([[1] * (LENGTH - n) + [0] * n for n in rest], np.int64),
        }
        batches.append(Examples(arrays, [section for _, section in cut]))
    return batches


def _tokens(text: str, vocabulary: dict[str, int]) -> list[int]:
    """WordPiece as BERT's, uncased (Devlin et al. 2019): of each word the longest beginning that has a token, and so on."""
    pieces: list[int] = []
    plain = "".join(c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")
    for word in re.findall(r"\w+|[^\w\s]", plain.replace("_", " _ ")):
        start, found = 0, []
        while start < len(word):
            mark = "##" if start else ""
            ends = (end for end in range(len(word), start, -1) if mark + word[start:end] in vocabulary)
            end = next(ends, None)
            if end is None:
                found = [UNKNOWN]
                break
            found.append(vocabulary[mark + word[start:end]])
            start = end
        pieces += found
    return [BEGIN, *pieces[: LENGTH - 2], END]


def _neighbours_of_same_section(outputs: list[NDArray[np.float32]], labels: list[str]) -> float:
    """Share of the 5 nearest other descriptions, by cosine, that are of the same section, in percent."""
    embedded = np.concatenate(outputs)
    embedded /= np.linalg.norm(embedded, axis=1, keepdims=True)
    closeness = embedded @ embedded.T
    np.fill_diagonal(closeness, -1)
    nearest = np.argpartition(-closeness, 5, axis=1)[:, :5]
    sections = np.array(labels)
    return 100 * float(np.mean(sections[nearest] == sections[:, None]))
