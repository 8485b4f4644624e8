"""Texts in the one form in which every reader sees them, whatever stands in them.

Items, rubrics and labels all pass through `normalise`. Its time grows with the text, and not
faster, however the text was made.
"""

import re
import unicodedata
from itertools import groupby

MARK, SPLIT = "<|mark|>", "<|split|>"
"""What `pipeline("decision")` puts into a prompt."""

# What transformers and llama.cpp tokenize differently. The letters and digits of Unicode 16: the
# tokenizers of transformers know them, llama.cpp, which has Unicode 15.1, does not, and parts words
# elsewhere (found by `python benchmarks/texts.py --table`; tests/inference/test_texts.py tries all
# characters). And, for SmolLM2: digits of Unicode 17, and control characters that are no token, so
# that one engine joins what stands around them. The Unicode of the running Python does not matter.
_UNLIKE = """
    0004-0004 0006-0006 0013-0014 0016-0016 001D-001D 11DE0-11DE9 16FF4-16FF6
    1C89-1C8A A7CB-A7CD A7DA-A7DC 105C0-105F3 10D40-10D65 10D6F-10D85 10EC2-10EC4 11380-11389
    1138B-1138B 1138E-1138E 11390-113B5 113B7-113B7 113D1-113D1 113D3-113D3 116D0-116E3 11BC0-11BE0
    11BF0-11BF9 13460-143FA 16100-1611D 16130-16139 16D40-16D6C 16D70-16D79 18CFF-18CFF 1CCF0-1CCF9
    1E5D0-1E5ED 1E5F0-1E5FA
"""
_ENDS = [[chr(int(end, 16)) for end in span.split("-")] for span in _UNLIKE.split()]
_REPLACED = re.compile(f"[{''.join(map('-'.join, _ENDS))}]")


def to_utf8(text: str) -> str:
    """Text as UTF-8 can hold it: half a surrogate pair becomes the replacement character."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def is_replaced(text: str) -> bool:
    """Whether `normalise` replaces characters, since the engines do not read them alike."""
    return _REPLACED.search(to_utf8(text)) is not None


def normalise(text: str) -> str:
    """Text as every reader sees it: valid UTF-8, without the sentinels of transformers, NFC.

    `pipeline("decision")` drops the sentinels from requests, and the tokenizers of transformers
    apply NFC, which llama.cpp does not; so both happen here for all. Characters that the engines
    do not read alike become the replacement character.
    """
    return nfc(_REPLACED.sub("\ufffd", _without_sentinels(to_utf8(text))))


def _without_sentinels(text: str) -> str:
    """Drop the sentinels, and those that come together where one was dropped."""
    if MARK not in text and SPLIT not in text:
        return text
    kept: list[str] = []
    for letter in text:
        kept.append(letter)
        for sentinel in (MARK, SPLIT) if letter == ">" else ():
            if "".join(kept[-len(sentinel) :]) == sentinel:
                del kept[-len(sentinel) :]
    return "".join(kept)


def nfc(text: str) -> str:
    """Unicode's normal form C.

    The time in which CPython puts combining marks in order grows with the square of their number,
    unless they are in order already. So a text that is not NFC is decomposed letter by letter, and
    each run of marks sorted by class, which is the canonical order, before CPython composes it.
    """
    if unicodedata.is_normalized("NFC", text):  # "no" at the first mark that is out of order
        return text
    letters = "".join(unicodedata.normalize("NFD", letter) for letter in text)
    runs = groupby(letters, key=lambda letter: unicodedata.combining(letter) > 0)
    ordered = (sorted(run, key=unicodedata.combining) if marks else run for marks, run in runs)
    return unicodedata.normalize("NFC", "".join("".join(run) for run in ordered))
