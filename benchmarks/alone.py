"""Rows alone against rows in a batch, by their length: where the second look at near ties pays.

    python benchmarks/alone.py runs/demo/gguf --rows ../shared/data/goemotions_dev.csv \
        --tokens 24 48 96 150

Items are runs of words of a table's column, cut to about so many tokens a field. Both ways take
turns; rows a second are of the medians. Near ties are the share of rows that a batch would have
computed again.
"""

import argparse
import random
import statistics
import time
from pathlib import Path

from slm_judge import Judge
from slm_judge.data.tables import read_table
from slm_judge.judge.answer import gap

WORDS_PER_TOKEN = 1 / 1.3


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rows", required=True, help="table of texts")
    parser.add_argument("--column", default="text")
    parser.add_argument("--tokens", type=int, nargs="+", default=[24, 48, 96, 150])
    parser.add_argument("--total", type=int, default=3000, help="tokens of a measurement")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    words = " ".join(str(row[given.column]) for row in read_table(given.rows).rows).split()
    rng = random.Random(0)  # noqa: S311
    print("| own tokens | alone, rows/s | in batches, rows/s | times | near ties |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    with Judge.from_pretrained(given.model) as judge:
        backend, fields = judge.backend, judge.rubric.fields
        for n in given.tokens:
            length = max(1, round(n * WORDS_PER_TOKEN / len(fields)))
            starts = [rng.randrange(len(words) - length) for _ in range(max(8, given.total // n))]
            text = [" ".join(words[start : start + length]) for start in starts]
            prompts = judge.encode([dict.fromkeys(fields, one) for one in text])
            own = sum(len(one.input_ids) for one in prompts) / len(prompts)
            seconds: dict[bool, list[float]] = {True: [], False: []}
            for _ in range(given.repeats):
                for alone, found in seconds.items():
                    started = time.perf_counter()
                    answers = dict(backend.run(prompts, alone))
                    found.append(time.perf_counter() - started)
            near = statistics.fmean(
                any(gap(row) < backend.near_tie for row in rows) for rows in answers.values()
            )
            one, many = (len(prompts) / statistics.median(seconds[way]) for way in (True, False))
            behind = own - len(backend.reader.prefix)
            print(f"| {behind:.0f} | {one:.2f} | {many:.2f} | {many / one:.2f} | {near:.2f} |",
                  flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
