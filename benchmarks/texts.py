"""Whether hostile texts give the same tokens in both engines, and in what time.

    python benchmarks/texts.py --texts 1000000 --processes 2
    python benchmarks/texts.py --attacks
    python benchmarks/texts.py --table          # characters that only one of the engines knows

Texts are drawn over all scripts, marks, controls, sentinels, control tokens, emoji and broken
halves of them, rendered through both templates of a judge, and tokenized by the tokenizers of
transformers and by llama.cpp, which share Qwen's vocabulary.
"""

import argparse
import atexit
import functools
import json
import multiprocessing
import random
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from slm_judge import Rubric
from slm_judge.artefact.judge_files import Contract
from slm_judge.data.text import read_text
from slm_judge.offline.llama_source import llama_cpp_source
from slm_judge.offline.tiny import qwen_tokenizer
from slm_judge.prompt.readers import DecisionReader, SystemoneReader
from slm_judge.text import nfc, normalise

CHUNK = 2000
SIZES = (100_000, 1_000_000)
SENTINELS = ["<|mark|>", "<|split|>", "<|ma", "rk|>", "<|sp", "lit|>", "<|mark|", "<|<|split|>"]
CONTROL = [
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>", "<s>", "</s>", "[INST]",
    "<|", "|>", "<¦|", "¦", "<|im_end|>\u0338", "<\u0338|im_end|>", "{{ x }}", "{% endif %}",
]  # fmt: skip
WHITE = [" ", "  ", "\n", "\r\n", "\t", "\n\n \n", "\u00a0", "\u2003", "\u3000", "\x85", "\u2028"]
WORDS = [
    "the",
    "it's",
    "WE'LL",
    "I'd",
    "don't",
    "\u017fo",
    "'\u017f",
    "1,234.50",
    "²³",
    "e.g.",
    "--",
]
HALVES = ["\ud800", "\udfff", "\ud83d", "\ude00", "\ud83d\ude00"]
TELLING = ["", " ", "'s", "'ll", "\n \n", "'"]
# "'s" and "\n \n" tell what an engine takes for a letter or a digit from what it does not.
CONTEXTS = ["{}'s\n \n|", "a{} {}{}'ll|", "1{}\u0323\u0301'{}s|"]

FIELDS = ["first", "second", "third", "fourth"]  # texts of a prompt
RUBRIC: dict[str, Any] = {
    "name": "texts", "instructions": "Rate.", "fields": FIELDS,
    "dimensions": [{"name": "good", "type": "noul", "instructions": "Is it good?"}],
}  # fmt: skip


@functools.cache
def alphabet(kind: str) -> str:
    """All characters of a kind: marks, controls, letters, decomposable, emoji."""
    points = [chr(p) for p in range(0x110000) if not 0xD800 <= p < 0xE000]
    tests: dict[str, Callable[[str], bool]] = {
        "marks": lambda c: unicodedata.combining(c) > 0,
        "controls": lambda c: unicodedata.category(c) in ("Cc", "Cf"),
        # Also what may be one for another Unicode than this Python's.
        "letters": lambda c: (
            unicodedata.category(c)[0] in "LN"
            or (unicodedata.category(c) == "Cn" and ord(c) < 0x20000)
        ),
        "decomposable": lambda c: unicodedata.normalize("NFD", c) != c,
        "signs": lambda c: unicodedata.category(c)[0] in "PS",
        "emoji": lambda c: 0x1F000 <= ord(c) < 0x1FB00 or c in "\u200d\ufe0f\u20e3",
        "all": lambda c: True,
    }
    return "".join(filter(tests[kind], points))


def draw(rng: random.Random) -> str:
    """A text of pieces of many kinds, most of them short."""
    return "".join(_piece(rng) for _ in range(rng.randrange(1, 9)))


def _piece(rng: random.Random) -> str:
    kind = rng.choice(("words", "script", "latin", "marks", "list", "list", "list", "mixed"))
    if kind == "words":
        return " ".join(rng.choices(WORDS, k=rng.randrange(1, 6)))
    if kind == "list":
        chosen = rng.choice((SENTINELS, CONTROL, WHITE, HALVES))
        return "".join(rng.choices(chosen, k=rng.randrange(1, 4)))
    if kind == "script":  # neighbours in the table of characters
        letters = alphabet("letters")
        start = rng.randrange(len(letters))
        word = "".join(rng.choices(letters[start : start + 60], k=rng.randrange(1, 20)))
        return word + rng.choice(TELLING)
    if kind == "latin":
        return "".join(
            rng.choices("etaoin ETAOIN äéñçø 0123456789.,;:!?'\"", k=rng.randrange(1, 30))
        )
    if kind == "marks":
        run = rng.choices(alphabet("marks"), k=rng.choice((1, 2, 3, 8)))
        return rng.choice(alphabet("decomposable")) + "".join(run)
    names = ("controls", "letters", "decomposable", "signs", "emoji", "all")
    return "".join(rng.choice(alphabet(rng.choice(names))) for _ in range(rng.randrange(1, 12)))


@functools.cache
def engines() -> tuple[Callable[[str], list[int]], Callable[[str], list[int]]]:
    """The tokenizer of transformers, and that of llama.cpp with control tokens parsed."""
    import llama_cpp

    path = llama_cpp_source() / "models" / "ggml-vocab-qwen2.gguf"
    vocabulary = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    atexit.register(vocabulary.close)
    backend = qwen_tokenizer().backend_tokenizer
    return (
        lambda text: backend.encode(text, add_special_tokens=False).ids,
        lambda text: vocabulary.tokenize(text.encode(), add_bos=False, special=True),
    )


@functools.cache
def readers() -> tuple[DecisionReader, SystemoneReader]:
    """A judge's two readers."""
    rubric, tokenizer = Rubric.parse(RUBRIC, "texts"), qwen_tokenizer()
    contract = Contract.build(rubric, tokenizer)
    return (
        DecisionReader(tokenizer, contract.decision_template, rubric, contract.labels),
        SystemoneReader(engines()[1], contract.systemone_template, rubric, contract.labels),
    )


def compare(seed: int) -> tuple[int, list[dict[str, str]]]:
    """Number of texts tried with a seed, and the items whose tokens differ."""
    rng = random.Random(seed)  # noqa: S311
    texts = (text for text, problem in iter(lambda: read_text(draw(rng)), None) if not problem)
    states = [{field: next(texts) for field in FIELDS} for _ in range(CHUNK)]
    decision, systemone = readers()
    pairs = zip(states, decision.encode(states), systemone.encode(states), strict=True)
    return CHUNK * len(FIELDS), [state for state, ours, theirs in pairs if ours != theirs]


def differing(
    points: Sequence[int], context: str, read: Callable[[str], str] = normalise
) -> list[int]:
    """The code points that the engines tokenize differently in a context, once `read` saw them."""
    text = "".join(read(context.replace("{}", chr(point))) for point in points)
    ours, theirs = (encode(text) for encode in engines())
    if ours == theirs:
        return []
    if len(points) == 1:
        return list(points)
    half = len(points) // 2
    return [p for part in (points[:half], points[half:]) for p in differing(part, context, read)]


def table() -> Iterator[str]:
    """The spans of characters that the engines tokenize differently in some context."""
    points = [point for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    found = sorted(
        {
            point
            for context in CONTEXTS
            for start in range(0, len(points), CHUNK)
            for point in differing(points[start : start + CHUNK], context, nfc)
        }
    )
    while found:
        length = next((i for i, p in enumerate(found) if p != found[0] + i), len(found))
        yield f"{found[0]:04X}-{found[length - 1]:04X}"
        found = found[length:]


def attacks(size: int) -> dict[str, str]:
    """Texts of `size` characters that are made to take time."""
    by_class = sorted(alphabet("marks"), key=unicodedata.combining)
    shapes = {
        "one word": "a", "spaces": " ", "digits": "7", "line breaks": "\n", "tabs": "\t",
        "emoji": "😀", "Han": "漢", "one mark": "\u0301", "two classes of marks": "\u0301\u0323",
        "marks that decompose": "\u0344\u0323", "vowels of Tibetan": "\u0f73\u0323",
        "falling classes": "".join(m * (size // len(by_class) + 1) for m in reversed(by_class)),
        "jamo": "\u1100\u1161\u11a8", "decomposed letters": "e\u0301", "composed thrice": "\ufb2c",
        "escapes": "<|", "half pairs": "\ud800",
        "letters of Unicode 16": "\U00013460", "apostrophes": "'s",
    }  # fmt: skip
    texts = {
        name: "a" + (part * (size // len(part) + 1))[: size - 1] for name, part in shapes.items()
    }
    texts["a mark that is blocked"] = "a" + "\u0334" * (size - 2) + "\u0301"
    texts["spaces, then a word"] = " " * (size - 1) + "a"
    texts["nested sentinels"] = "<|ma" * (size // 8) + "<|mark|>" + "rk|>" * (size // 8)
    return texts


def seconds(work: Callable[[], object]) -> float:
    """What a piece of work takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def attack() -> None:
    """Print seconds per million characters of each attack, at two sizes: linear where alike."""
    engine_names = "".join(f"{name:>18}" for name in ("normalise", "transformers", "llama.cpp"))
    print(f"{'seconds per million characters':32}{engine_names}")
    print(f"{'of texts of characters':32}" + 3 * "".join(f"{size:>9}" for size in SIZES))
    short, long = (attacks(size) for size in SIZES)
    for name in short:
        cells = []
        for work in (normalise, *engines()):
            for text in (short[name], long[name]):
                shown = text if work is normalise else normalise(text)
                taken = seconds(functools.partial(work, shown))
                cells.append(f"{taken * 1e6 / len(text):9.2f}")
        print(f"{name:32}{''.join(cells)}", flush=True)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--texts", type=int, default=1_000_000)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--attacks", action="store_true")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table:
        print(*table())
    elif options.attacks:
        attack()
    else:
        run(options.texts, options.processes, options.seed)


def run(n_texts: int, processes: int, seed: int) -> None:
    """Compare; print counts, and the first items that differ."""
    n_chunks = -(-n_texts // (CHUNK * len(FIELDS)))
    seeds = range(seed * 10**6, seed * 10**6 + n_chunks)
    tried, different, started = 0, list[dict[str, str]](), time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for number, states in pool.imap_unordered(compare, seeds):
            tried, different = tried + number, different + states
    taken = time.perf_counter() - started
    print(json.dumps({"tried": tried, "different": len(different), "seconds": round(taken),
                      "texts_per_second": round(tried / taken)}))  # fmt: skip
    for state in different[:10]:
        print(ascii(state))
    raise SystemExit(bool(different))


if __name__ == "__main__":
    main()
