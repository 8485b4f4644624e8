"""The llama.cpp engine: one GGUF file, the rubric decoded once, many rows a batch."""

import ctypes
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slm_judge.artefact.calibration import read_calibrations
from slm_judge.artefact.judge_files import QUESTION_TYPES, Contract, read_temperatures
from slm_judge.artefact.locate import tell_once
from slm_judge.errors import ModelError, require
from slm_judge.prompt.labels import check_label_count, single_token_labels
from slm_judge.prompt.readers import EncodedPrompt, SystemoneReader
from slm_judge.prompt.templates import compile_template
from slm_judge.rubric import Rubric

from . import Logits, Reader

RUBRIC_KEY, VERSION_KEY = "slm_judge.rubric", "slm_judge.version"
CALIBRATION_KEY = "slm_judge.calibration"
BASE_KEY = "slm_judge.base"  # which base a file is, or which one an adapter was trained on
TEMPLATE_NAME = "systemone"


_SMALLEST_ROW = 16  # tokens that a row needs at the least
# Tokens that llama.cpp computes at a time, and so those of a batch, but for one longer row: beyond
# it nothing is gained, and each row's attention passes over the cells of the others.
_MICRO_BATCH = 512
# Measured on 2 cores of a CPU (benchmarks/alone.py): from so many tokens on, a batch gains less
# than it costs to compute near ties again; and where more than this share of shorter rows are some.
_FULL, _MOST_NEAR_TIES = 64, 0.25


@dataclass(frozen=True)
class _Part:
    """What one sequence adds to a batch."""

    sequence: int
    first: int
    """Position of the first token."""
    tokens: list[int]
    slots: list[int]
    """Where logits are read, from the first token on."""


# More than twice the largest change of the difference between two labels' logits that was measured
# when the batch changed: benchmarks/determinism.py, docs/annotation.md.
_NEAR_TIE = 0.25

_LESS_MEMORY = (
    "Set or lower max_memory (--max-memory), shorten the longest rows, or take a smaller "
    "quantization of the judge."
)


class GgufBackend:
    """Sequence 0 holds the rubric; rows are decoded as further sequences that share its cells."""

    name = "gguf"

    def __init__(
        self,
        path: Path,
        max_memory: float | None = None,
        n_sequences: int = 32,
        n_threads: int | None = None,
        flash_attention: bool = True,
        adapter: Path | None = None,
    ) -> None:
        """Load a judge.

        The key-value cache has a cell for each token of the rubric and of the rows of a batch:
        4096 by default, or twice the rubric where that is more; it grows for a longer row, up to
        what the model can read or `max_memory` allows.

        Args:
            path: the `.gguf` file.
            max_memory: GiB for the weights and the key-value cache together.
            n_sequences: rows decoded together at most (see docs/annotation.md for the choice).
            n_threads: by default all cores that this process may use.
            flash_attention: of llama.cpp.
            adapter: a GGUF LoRA with a judge's keys, which makes a judge of `path`, its base.

        Raises:
            ModelError: the file is not a GGUF, it is not a judge, or the memory is too small.
        """
        llama = require("llama_cpp", "gguf")
        self._llama, self.path = llama, adapter or path  # of what is the judge's own
        self._context: Any = None
        self._model: Any = None
        self._adapter: Any = None
        quiet(llama)
        self.files = [path, adapter] if adapter else [path]
        if missing := [file for file in self.files if not file.is_file()]:
            raise ModelError(f"There is no file {missing[0]}.")
        self._n_sequences, self._n_threads = n_sequences, n_threads or usable_cores()
        self._flash_attention = flash_attention
        self.noise = self.near_tie = _NEAR_TIE
        self._on_gpu = llama.llama_supports_gpu_offload()  # where rows alone leave it idle
        self.most_near_ties = 1.0 if self._on_gpu else _MOST_NEAR_TIES
        try:
            self._load(path, adapter, max_memory)
        except BaseException:
            self.close()
            raise

    def _load(self, path: Path, adapter: Path | None, max_memory: float | None) -> None:
        llama = self._llama
        self._model = llama.llama_model_load_from_file(
            os.fsencode(path), llama.llama_model_default_params()
        )
        if not self._model:
            raise ModelError(f"{path} is not a GGUF file that llama.cpp can load{_reason()}.")
        if adapter:
            self._adapter = llama.llama_adapter_lora_init(self._model, os.fsencode(adapter))
            if not self._adapter:
                raise ModelError(f"{adapter} is not an adapter (LoRA) of {path}{_reason()}.")
            ours, theirs = self._judge_metadata(BASE_KEY), self._metadata(BASE_KEY)
            if self._metadata(RUBRIC_KEY):
                raise ModelError(
                    f"{path} is a judge already, into which an adapter is merged: load it alone, "
                    f"or {adapter} with its base, {ours or 'which it does not name'}."
                )
            if not (ours and theirs):  # llama.cpp looks at shapes alone
                tell_once(
                    f"{path if ours else adapter} names no base, so that {path} is taken for that "
                    f"of {adapter}{f', {ours},' if ours else ''} unseen."
                )
            elif ours != theirs:
                raise ModelError(f"{adapter} was trained on the base {ours}; {path} is {theirs}.")
        self._vocab = llama.llama_model_get_vocab(self._model)
        self._n_vocab = llama.llama_vocab_n_tokens(self._vocab)
        labels = single_token_labels(lambda text: self._tokenize(text, special=False))
        self._label_ids = np.array(list(labels.values()))
        self.contract = self._read_contract(tuple(labels))
        self.reader = self.reader_of(self.contract.rubric)
        self._prefix: list[int] = self.reader.prefix
        self._cell_size = self._bytes_of_a_cell()
        most = math.inf if max_memory is None else max_memory
        free = most * 2**30 - llama.llama_model_size(self._model)
        self._room = 2**31 - 1 if max_memory is None else int(free // self._cell_size)
        readable, needed = llama.llama_model_n_ctx_train(self._model), len(self._prefix)
        if readable < needed + _SMALLEST_ROW:
            raise ModelError(
                f"{path} can read {readable} tokens (its context_length), but the rubric alone has "
                f"{needed}. Shorten the rubric, or take another base."
            )
        self.max_tokens = min(self._room, readable)
        if self.max_tokens < needed + _SMALLEST_ROW:
            raise ModelError(
                f"The rubric alone has {needed} tokens, but there is room for {self.max_tokens}. "
                "Raise max_memory, or shorten the rubric."
            )
        self.expect(self.reader)

    def expect(self, reader: Reader) -> None:
        """See `Backend.expect`."""
        self._prefix = reader.prefix
        self._open_context(self._usual_context)

    @property
    def _usual_context(self) -> int:
        """Tokens, where no row needs more."""
        return min(max(4096, 2 * len(self._prefix)), self._room)

    def reader_of(self, rubric: Rubric) -> SystemoneReader:
        """See `Backend.reader_of`."""
        return SystemoneReader(
            self._tokenize, self.contract.systemone_template, rubric, self.contract.labels,
            lambda token: bool(self._llama.llama_vocab_is_control(self._vocab, token)),
        )  # fmt: skip

    def _bytes_of_a_cell(self) -> int:
        """Of the key-value cache, for one token."""
        llama, model = self._llama, self._model
        per_head = llama.llama_model_n_embd(model) // max(llama.llama_model_n_head(model), 1)
        prefix = f"{self._metadata('general.architecture')}.attention"
        numbers = [
            int(self._metadata(f"{prefix}.{name}_length") or per_head) for name in ("key", "value")
        ]
        heads = llama.llama_model_n_head_kv(model) * llama.llama_model_n_layer(model)
        return max(2 * int(heads) * sum(numbers), 1)  # 16 bits a number

    # --- what the file says ---

    def _metadata(self, key: str) -> str | None:
        """Of the base or of the whole judge."""
        return self._value(self._llama.llama_model_meta_val_str, self._model, key)

    def _judge_metadata(self, key: str) -> str | None:
        """Of the adapter, where there is one; its base has none."""
        if self._adapter:
            return self._value(self._llama.llama_adapter_meta_val_str, self._adapter, key)
        return self._metadata(key)

    def _value(self, read: Callable[..., int], owner: Any, key: str) -> str | None:
        size = 1024
        while True:
            buffer = ctypes.create_string_buffer(size)
            length = read(owner, key.encode(), buffer, size)
            if length < size:
                break
            size = length + 1
        try:
            return None if length < 0 else buffer.value.decode()
        except UnicodeDecodeError as error:
            raise ModelError(f"{self.path}: {key} is not UTF-8: {error}") from error

    def _read_contract(self, labels: tuple[str, ...]) -> Contract:
        template_key = f"tokenizer.chat_template.{TEMPLATE_NAME}"
        template, rubric = self._judge_metadata(template_key), self._judge_metadata(RUBRIC_KEY)
        if not template or not rubric:
            raise ModelError(
                f"{self.path} has no {RUBRIC_KEY} or {template_key}: it is a language model, not a "
                "judge. Make one with `slm-judge export`."
            )
        parsed = Rubric.from_json(rubric, f"{self.path}: {RUBRIC_KEY}")
        check_label_count(parsed, labels)
        compile_template(template, f"{self.path}: {template_key}")
        prefix = f"{self._metadata('general.architecture')}.decision.temperature"
        found = {kind: self._judge_metadata(f"{prefix}.{kind}") for kind in QUESTION_TYPES}
        given = {kind: text for kind, text in found.items() if text is not None}
        temperatures = read_temperatures(given, f"{self.path}: {prefix}")
        own = self._judge_metadata(CALIBRATION_KEY) or "{}"
        calibrations = read_calibrations(own, parsed, f"{self.path}: {CALIBRATION_KEY}")
        return Contract(parsed, "", template, labels, temperatures, calibrations)

    def _tokenize(self, text: str, special: bool = True) -> list[int]:
        data = text.encode()
        tokens = (self._llama.llama_token * (len(data) + 8))()
        count = self._llama.llama_tokenize(
            self._vocab, data, len(data), tokens, len(tokens), False, special
        )
        if count < 0:
            raise ModelError(f"llama.cpp could not tokenize a text of {len(data)} bytes.")
        return list(tokens[:count])

    # --- decoding ---

    def _open_context(self, n_ctx: int) -> None:
        llama = self._llama
        if self._context:
            llama.llama_free(self._context)
        self._context, self._n_ctx = None, 0  # until there is one
        if n_ctx * self._cell_size > _free_memory(llama):  # llama.cpp would take it, and be killed
            raise ModelError(f"Out of memory for a context of {n_ctx} tokens. {_LESS_MEMORY}")
        params = llama.llama_context_default_params()
        params.n_ctx = params.n_batch = n_ctx
        params.n_ubatch = min(_MICRO_BATCH, n_ctx)
        params.n_seq_max = self._n_sequences + 1
        params.kv_unified = True
        params.flash_attn_type = int(self._flash_attention)
        params.n_threads = params.n_threads_batch = self._n_threads
        self._context = llama.llama_init_from_model(self._model, params)
        if not self._context:
            raise ModelError(
                f"Out of memory for a context of {n_ctx} tokens{_reason()}. {_LESS_MEMORY}"
            )
        if self._adapter:
            adapters = (llama.llama_adapter_lora_p_ctypes * 1)(self._adapter)
            llama.llama_set_adapters_lora(self._context, adapters, 1, (ctypes.c_float * 1)(1.0))
        self._n_ctx = n_ctx
        self._memory = llama.llama_get_memory(self._context)
        self._decode([_Part(0, 0, self._prefix, [])])

    def fills(self, prompt: EncodedPrompt) -> bool:
        """See `Backend.fills`."""
        return not self._on_gpu and len(prompt.input_ids) - self._shared(prompt) >= _FULL

    def run(
        self, prompts: Sequence[EncodedPrompt], alone: bool = False
    ) -> Iterator[tuple[int, Logits]]:
        """See `Backend.run`."""
        most = 1 if alone else self._n_sequences
        batch: list[tuple[int, EncodedPrompt]] = []
        room = 0
        for index, prompt in enumerate(prompts):
            cost = len(prompt.input_ids) - self._shared(prompt)
            if batch and (len(batch) == most or cost > room):
                yield from self._run(batch)
                batch = []
            if not batch:
                self._ensure_room(len(prompt.input_ids))
                room = min(self._n_ctx - len(self._prefix), _MICRO_BATCH)
            batch.append((index, prompt))
            room -= cost
        if batch:
            yield from self._run(batch)

    def _shared(self, prompt: EncodedPrompt) -> int:
        """Leading tokens that are the rubric's, all but always the whole of it."""
        n_prefix = len(self._prefix)
        if prompt.input_ids[:n_prefix] == self._prefix:
            return n_prefix
        pairs = enumerate(zip(prompt.input_ids, self._prefix, strict=False))
        return next((i for i, (ours, theirs) in pairs if ours != theirs), 0)

    def _ensure_room(self, n_tokens: int) -> None:
        if n_tokens > self.max_tokens:
            raise ModelError(
                f"A row needs {n_tokens} tokens, but there is room for {self.max_tokens}. Shorten "
                "its longest field."
            )
        # A row that shares nothing with the rubric still stands beside it.
        needed = min(len(self._prefix) + n_tokens, self._room)
        if needed > self._n_ctx:
            if not self._n_ctx and needed < self._usual_context:
                # It was given up for a row for which there was no memory.
                with suppress(ModelError):
                    self._open_context(self._usual_context)
                    return
            self._open_context(needed)

    def _run(self, batch: list[tuple[int, EncodedPrompt]]) -> Iterator[tuple[int, Logits]]:
        llama = self._llama
        parts = []
        for sequence, (_, prompt) in enumerate(batch, start=1):
            shared = self._shared(prompt)
            llama.llama_memory_seq_cp(self._memory, 0, sequence, 0, shared)
            slots = [slot - shared for slot in prompt.slots]
            parts.append(_Part(sequence, shared, prompt.input_ids[shared:], slots))
        try:
            outputs = self._decode(parts)
        finally:
            for sequence in range(1, len(batch) + 1):
                llama.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        counts = [len(dimension.options) for dimension in self.contract.rubric.dimensions]
        for (index, _), rows in zip(batch, outputs, strict=True):
            yield index, [row[:count] for row, count in zip(rows, counts, strict=True)]

    def _decode(self, parts: Sequence["_Part"]) -> list[Logits]:
        """Label logits at the slots of each part."""
        llama = self._llama
        lengths = [len(part.tokens) for part in parts]
        total, starts = sum(lengths), np.cumsum([0, *lengths[:-1]])
        slots = [
            int(start) + slot for start, part in zip(starts, parts, strict=True)
            for slot in part.slots
        ]  # fmt: skip
        batch = llama.llama_batch_init(total, 0, 1)
        try:
            batch.n_tokens = total
            as_array = np.ctypeslib.as_array
            as_array(batch.token, (total,))[:] = np.concatenate([p.tokens for p in parts])
            as_array(batch.pos, (total,))[:] = np.concatenate(
                [part.first + np.arange(n) for part, n in zip(parts, lengths, strict=True)]
            )
            as_array(batch.n_seq_id, (total,))[:] = 1
            flags = as_array(batch.logits, (total,))
            flags[:] = 0
            flags[slots] = 1
            for part, start, n in zip(parts, starts.tolist(), lengths, strict=True):
                for cell in range(start, start + n):
                    batch.seq_id[cell][0] = part.sequence
            status = llama.llama_decode(self._context, batch)
            if status:
                raise ModelError(
                    f"llama.cpp could not decode a batch of {total} tokens (status {status}; "
                    f"below -1, memory ran out). {_LESS_MEMORY}"
                )
            found = [self._label_logits(slot) for slot in slots]
        finally:
            llama.llama_batch_free(batch)
        per_part = iter(found)
        return [[next(per_part) for _ in part.slots] for part in parts]

    def _label_logits(self, position: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        pointer = self._llama.llama_get_logits_ith(self._context, position)
        logits = np.ctypeslib.as_array(pointer, shape=(self._n_vocab,))
        found: np.ndarray[Any, np.dtype[np.float32]] = logits[self._label_ids]
        return found

    def close(self) -> None:
        """Free the context and the model."""
        if self._context:
            self._llama.llama_free(self._context)
            self._context = None
        if self._model:
            self._llama.llama_model_free(self._model)  # and its adapter
            self._model = self._adapter = None

    def __del__(self) -> None:
        if getattr(self, "_model", None):
            self.close()


_LOG_CALLBACK: Any = None
_ERRORS: list[str] = []


def usable_cores() -> int:
    """Cores that this process may use, which in a container are often fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def quiet(llama: Any) -> None:
    """Keep llama.cpp's log out of the progress bars (`SLM_JUDGE_LLAMA_LOG=1` shows it)."""
    global _LOG_CALLBACK
    if _LOG_CALLBACK is None and not os.environ.get("SLM_JUDGE_LLAMA_LOG"):
        _LOG_CALLBACK = llama.llama_log_callback(_listen)
        llama.llama_log_set(_LOG_CALLBACK, None)


def _listen(level: int, text: bytes, data: Any) -> None:
    if level == 4 and len(_ERRORS) < 8:  # GGML_LOG_LEVEL_ERROR
        _ERRORS.append("".join(filter(str.isprintable, text.decode("utf-8", "replace")))[:300])


def _reason() -> str:
    """What llama.cpp has said against the file: the first error since the last time."""
    said, _ERRORS[:] = _ERRORS[:1], []
    return f" ({said[0].strip()})" if said else ""


def _free_memory(llama: Any) -> float:
    """Bytes, where Linux says so and no GPU holds the cache."""
    memory = Path("/proc/meminfo")
    found = re.search(r"MemAvailable: *(\d+)", memory.read_text()) if memory.exists() else None
    return int(found[1]) * 1024 if found and not llama.llama_supports_gpu_offload() else math.inf
