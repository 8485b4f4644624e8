"""The judge: a rubric, a model that answers it, and an engine."""

import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from slm_judge.artefact.calibration import Calibration
from slm_judge.artefact.locate import locate
from slm_judge.backends import Backend, Logits, Reader, check_finite
from slm_judge.data.text import item_state
from slm_judge.errors import DataError, ModelError
from slm_judge.prompt.readers import EncodedPrompt, encode_readings
from slm_judge.rubric import Dimension, Preference, Rubric

from .answer import Annotation, annotations_from_logits, averaged, collected, gap

BackendName = Literal["auto", "gguf", "transformers"]
Row = str | Mapping[str, Any]
_FIRST = 64  # rows that tell how many near ties there are


class LoadOptions(TypedDict, total=False):
    """How `Judge.from_pretrained` loads; None is the default everywhere."""

    quantization: str | None
    """Which GGUF file of several, e.g. "Q8_0"; by default the one that `export` found to keep the
    adapter's answers (`default_gguf.json` beside them), or Q4_0, or Q4_K_M."""
    adapter: str | Path | None
    """llama.cpp only: a GGUF LoRA (`slm-judge export --lora`) that makes a judge of the base."""
    device: str | None
    """transformers only: cpu, cuda, mps; by default a GPU where there is one."""
    dtype: str | None
    """transformers only: float32, bfloat16, float16, or "auto", that of the files or of an
    adapter's training; by default "auto" on a CUDA GPU (float16 where it has no bfloat16),
    and float32 elsewhere."""
    tokens_per_pack: int | None
    """transformers only: rows' tokens of one pass, which bounds memory; by default 1024 on a CPU
    (512 by a mask) and on Apple's GPUs; on a CUDA GPU 512 to 8192, by the model and by what memory
    is free, and 16,384 at most."""
    compile: bool
    """transformers only: fuse what a layer computes between its products (`torch.compile`), which
    takes 13 s and more at first; for CUDA GPUs, where it made 1.6 times the rows a second."""
    n_threads: int | None
    """llama.cpp only; by default all cores."""
    max_memory: float | None
    """llama.cpp only: GiB for the weights and the key-value cache."""
    exact: bool
    """Compute each row by itself, so that probabilities too do not depend on the rows beside it,
    to the last bit (labels never do); for short rows, 1.3 to 1.5 times the time."""
    trust: bool
    """llama.cpp only: load a file without trying it in a process of its own first, once a file; a
    damaged one can end this process."""


class Judge:
    """Annotates items under the rubric that it was trained for."""

    def __init__(self, backend: Backend, exact: bool = False) -> None:
        """Wrap a loaded backend; see `from_pretrained`."""
        self.backend, self.exact = backend, exact

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        revision: str | None = None,
        backend: BackendName = "auto",
        **options: Unpack[LoadOptions],
    ) -> Self:
        """Load a judge.

        Args:
            model: Hub repository `user/name`, folder, or `.gguf` file; with `adapter`, its base.
            revision: branch, tag or commit of the repository.
            backend: "gguf" (llama.cpp), "transformers", or "auto": what the files are for.
            options: `LoadOptions`: quantization, adapter, device, dtype, tokens_per_pack, compile,
                n_threads, max_memory, exact, trust.

        Raises:
            ModelError: there is no such judge or option, or it cannot be loaded.
            MissingExtraError: the engine's package is not installed.
        """
        if backend not in ("auto", "gguf", "transformers"):
            raise ModelError(f"backend is auto, gguf or transformers, not {backend!r}.")
        if unknown := sorted(options.keys() - LoadOptions.__annotations__.keys()):
            raise ModelError(
                f"Judge.from_pretrained has no option {', '.join(unknown)}; it has "
                f"{', '.join(LoadOptions.__annotations__)}."
            )
        path = locate(model, revision, options.get("quantization"))
        found = "gguf" if path.is_file() else "transformers"
        if backend not in ("auto", found):
            raise ModelError(f"{model} is a judge for the {found} backend, not for {backend}.")
        given, exact = options.get("adapter"), options.get("exact", False)
        adapter = locate(given, None, None) if given else None
        if adapter and (found != "gguf" or not adapter.is_file()):
            raise ModelError(
                f"adapter= is for two GGUF files, a base and its adapter; {model} and {given} are "
                "not. A folder with an adapter is a judge by itself: load that."
            )
        device = options.get("device")
        if found == "gguf":
            if device not in (None, "auto", "cpu"):
                raise ModelError(
                    f"device={device} is for transformers: llama.cpp computes where it was built "
                    "for. Leave it out."
                )
            if options.get("compile"):
                raise ModelError("compile=True is for transformers. Leave it out.")
            if given_one := next((n for n in ("dtype", "tokens_per_pack") if options.get(n)), None):
                raise ModelError(f"{given_one}= is for transformers. Leave it out.")
            from slm_judge.backends.gguf import GgufBackend
            from slm_judge.backends.probe import check_gguf

            threads, memory = options.get("n_threads"), options.get("max_memory")
            if memory is not None and not 0 < memory < math.inf:
                raise ModelError(f"max_memory is a number of GiB above 0, not {memory}.")
            if not options.get("trust"):
                check_gguf(path, memory, threads, adapter)
            return cls(GgufBackend(path, memory, n_threads=threads, adapter=adapter), exact)
        from slm_judge.backends.transformers import TransformersBackend

        loaded = TransformersBackend.load(
            path, device, options.get("dtype"), options.get("tokens_per_pack"),
            options.get("compile", False),
        )  # fmt: skip
        return cls(loaded, exact)

    @property
    def rubric(self) -> Rubric:
        """The rubric that the judge answers."""
        return self.backend.contract.rubric

    def annotate(
        self, rows: Sequence[Row], progress: Callable[[int], object] | None = None
    ) -> list[Annotation]:
        """Annotate rows.

        Args:
            rows: mappings with the rubric's fields (others are ignored), or strings where the
                rubric has one field.
            progress: called with the number of rows done since the last call.

        Returns:
            One annotation a row, in order.

        Raises:
            DataError: a row lacks a field or its text; nothing is annotated then.
        """
        advance = partial(progress, 1) if progress else None
        logits = collected(self.rubric, self.logits(rows), len(rows), advance)
        return annotations_from_logits(self.rubric, logits, self.backend.contract.calibration)

    def logits(self, rows: Sequence[Row]) -> Iterator[tuple[int, Logits]]:
        """Yield (row index, per dimension the options' logits before temperature), unordered.

        Of a preference, those of both readings: 2 x options, see `answer.averaged`.

        Raises:
            DataError: a row lacks a field or its text, or is longer than the model can read.
            ModelError: the model's weights are damaged.
        """
        yield from self.decide(self.prompts(rows))

    def prompts(
        self, rows: Sequence[Row], where: str = "Row {}", most: int | None = None
    ) -> list[EncodedPrompt]:
        """What `decide` takes, of rows as they come.

        Args:
            rows: as `annotate` takes them.
            where: names a row in errors, with its number in `{}`.
            most: tokens of a row, where they are to be fewer than the model can read.

        Raises:
            DataError: a row lacks a field or its text, or is longer than there is room for.
        """
        names = [where.format(i + 1) for i in range(len(rows))]
        states = [item_state(self.rubric, *one) for one in zip(rows, names, strict=True)]
        room = min(most or self.backend.max_tokens, self.backend.max_tokens)
        found = self.encode(states)
        for name, prompt in zip(names, found, strict=True):
            if prompt.n_tokens > room:
                raise DataError(
                    f"{name} needs {prompt.n_tokens} tokens, but there is room for {room}. "
                    "Shorten its longest field."
                )
        return found

    def encode(
        self, states: Sequence[dict[str, str]], reader: Reader | None = None
    ) -> list[EncodedPrompt]:
        """The prompts of items, of a rubric with a preference with both readings.

        Args:
            states: of the items.
            reader: by default the backend's.
        """
        return encode_readings((reader or self.backend.reader).encode, self.rubric, states)

    def decide(
        self, prompts: Sequence[EncodedPrompt], reverse: bool = False
    ) -> Iterator[tuple[int, Logits]]:
        """Yield (index, logits) of `encode`'s prompts; how they are batched decides no label.

        With `reverse`, the prompts list each dimension's options from the last to the first; the
        logits are in the rubric's order all the same.

        Engines compute many rows at a time, and the last digits of a row's logits depend on its
        neighbours. Where the two best labels of a dimension are nearer than the engine's noise,
        the row is computed again alone. So is a row to begin with that gains nothing by company;
        and so are all rows that are left once the first ones had too many near ties.
        """
        alone: list[int] = []
        together: list[int] = []
        for index, prompt in enumerate(prompts):
            (alone if self.exact or self.backend.fills(prompt) else together).append(index)
        first, rest = together[:_FIRST], together[_FIRST:]
        run = partial(self._run_twice if self.rubric.pair else self._run_once, reverse=reverse)
        close = yield from self._together(prompts, first, run)
        if len(close) > self.backend.most_near_ties * len(first):
            alone += rest
        else:
            close += yield from self._together(prompts, rest, run)
        alone += close
        for k, logits in run([prompts[index] for index in alone], alone=True):
            yield alone[k], logits

    def _together(
        self, prompts: Sequence[EncodedPrompt], chosen: Sequence[int], run: Callable[..., Any]
    ) -> Generator[tuple[int, Logits], None, list[int]]:
        """Yield (index, logits) of those chosen, but for near ties, whose indices are returned."""
        contract, close = self.backend.contract, list[int]()
        dimensions = contract.rubric.dimensions
        calibrations = [contract.calibration(dimension) for dimension in dimensions]
        for k, logits in run([prompts[index] for index in chosen], alone=False):
            near = self.backend.near_tie  # there may be none until memory runs out
            if any(found < near for found in map(_gap, dimensions, calibrations, logits)):
                close.append(chosen[k])
            else:
                yield chosen[k], logits
        return close

    def _run_once(
        self, readings: Sequence[EncodedPrompt], alone: bool, reverse: bool
    ) -> Iterator[tuple[int, Logits]]:
        for index, logits in self.backend.run(readings, alone):
            check_finite(logits, self.backend.path)
            yield index, [row[::-1] for row in logits] if reverse else logits

    def _run_twice(
        self, prompts: Sequence[EncodedPrompt], alone: bool, reverse: bool
    ) -> Iterator[tuple[int, Logits]]:
        """Preferences from both readings, which are neighbours; other dimensions from the first."""
        readings = [one for p in prompts for one in (p, p.exchanged) if one]
        assert len(readings) == 2 * len(prompts), "prompts are those of Judge.encode"
        waiting: dict[int, Logits] = {}
        for number, logits in self._run_once(readings, alone, reverse):
            index, second = divmod(number, 2)
            if index not in waiting:
                waiting[index] = logits
                continue
            pair = (waiting.pop(index), logits) if second else (logits, waiting.pop(index))
            both = zip(self.rubric.dimensions, *pair, strict=True)
            twice = [np.stack(of) if isinstance(d, Preference) else of[0] for d, *of in both]
            yield index, twice

    def close(self) -> None:
        """Free the model."""
        self.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _gap(dimension: Dimension, calibration: Calibration, logits: NDArray[Any]) -> float:
    """How far noise is from another label: of a preference, in either reading or their mean.

    Noise of the size n in a gap of logits moves each log probability by n at most, and so that of
    the mean, and the gap of two such by 2 n.
    """
    if not isinstance(dimension, Preference):
        return gap(calibration.leanings(logits))
    return min(*map(gap, logits), gap(averaged(logits, calibration)) / 2)
