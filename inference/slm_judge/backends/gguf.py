"""The llama.cpp engine: one GGUF file, the rubric decoded once, many rows a batch."""

import ctypes
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..contract import QUESTION_TYPES, Contract
from ..errors import ModelError, require
from ..prompt import EncodedPrompt, SystemoneReader, check_label_count, single_token_labels
from ..rubric import Rubric
from . import Logits

RUBRIC_KEY, VERSION_KEY = "slm_judge.rubric", "slm_judge.version"
TEMPLATE_NAME = "systemone"


class GgufBackend:
    """Sequence 0 holds the rubric; rows are decoded as further sequences that share its cells."""

    name = "gguf"

    def __init__(
        self,
        path: Path,
        n_ctx: int | None = None,
        n_sequences: int = 32,
        n_threads: int | None = None,
    ) -> None:
        """Load a judge.

        Args:
            path: the `.gguf` file.
            n_ctx: cells of the key-value cache, for the rubric and all rows of a batch; by
                default room for a batch of rows as long as the rubric, at least 4096.
            n_sequences: rows decoded together (32 measured best on 2 cores).
            n_threads: by default all cores.

        Raises:
            ModelError: the file is not a GGUF, or it is not a judge.
        """
        llama = require("llama_cpp", "gguf")
        self._llama, self.path = llama, path
        quiet(llama)
        if not path.is_file():
            raise ModelError(f"There is no file {path}.")
        self._model = llama.llama_model_load_from_file(
            str(path).encode(), llama.llama_model_default_params()
        )
        if not self._model:
            raise ModelError(f"{path} is not a GGUF file that llama.cpp can load.")
        self._context: Any = None
        self._vocab = llama.llama_model_get_vocab(self._model)
        labels = single_token_labels(lambda text: self._tokenize(text, special=False))
        self._label_ids = list(labels.values())
        self.contract = self._read_contract(tuple(labels))
        self.reader = SystemoneReader(
            self._tokenize,
            self.contract.systemone_template,
            self.contract.rubric,
            self.contract.labels,
        )
        self._prefix = self.reader.prefix
        self._n_sequences, self._n_threads = n_sequences, n_threads or os.cpu_count() or 1
        self._open_context(n_ctx or max(4096, 2 * len(self._prefix)))

    # --- what the file says ---

    def _metadata(self, key: str) -> str | None:
        llama, size = self._llama, 1024
        while True:
            buffer = ctypes.create_string_buffer(size)
            length = llama.llama_model_meta_val_str(self._model, key.encode(), buffer, size)
            if length < size:
                return None if length < 0 else buffer.value.decode()
            size = length + 1

    def _read_contract(self, labels: tuple[str, ...]) -> Contract:
        template = self._llama.llama_model_chat_template(self._model, TEMPLATE_NAME.encode())
        rubric = self._metadata(RUBRIC_KEY)
        if not template or not rubric:
            raise ModelError(
                f"{self.path} has no {RUBRIC_KEY} or tokenizer.chat_template.{TEMPLATE_NAME}: it "
                "is a language model, not a judge. Make one with `slm-judge export`."
            )
        parsed = Rubric.from_json(rubric)
        check_label_count(parsed, labels)
        prefix = f"{self._metadata('general.architecture')}.decision.temperature."
        found = {kind: self._metadata(prefix + kind) for kind in QUESTION_TYPES}
        temperatures = {kind: float(text) for kind, text in found.items() if text is not None}
        return Contract(parsed, "", template.decode(), labels, temperatures)

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
        params = llama.llama_context_default_params()
        params.n_ctx = params.n_batch = n_ctx
        params.n_ubatch = min(512, n_ctx)
        params.n_seq_max = self._n_sequences + 1
        params.kv_unified = True
        params.n_threads = params.n_threads_batch = self._n_threads
        self._context = llama.llama_init_from_model(self._model, params)
        if not self._context:
            raise ModelError(f"llama.cpp has no memory for a context of {n_ctx} tokens.")
        self._n_ctx = n_ctx
        self._memory = llama.llama_get_memory(self._context)
        self._decode([(0, 0, self._prefix, [])])

    def logits(self, states: Sequence[dict[str, str]]) -> Iterator[tuple[int, Logits]]:
        """See `Backend.logits`."""
        batch: list[tuple[int, EncodedPrompt]] = []
        room = 0
        for index, prompt in enumerate(self.reader.encode(states)):
            cost = len(prompt.input_ids) - self._shared(prompt)
            if batch and (len(batch) == self._n_sequences or cost > room):
                yield from self._run(batch)
                batch = []
            if not batch:
                self._ensure_room(cost)
                room = self._n_ctx - len(self._prefix)
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

    def _ensure_room(self, cost: int) -> None:
        needed = len(self._prefix) + cost
        trained = self._llama.llama_model_n_ctx_train(self._model)
        if needed > trained:
            raise ModelError(
                f"A row needs {needed} tokens, but the model reads at most {trained}. Shorten the "
                "longest field."
            )
        if needed > self._n_ctx:
            self._open_context(needed)

    def _run(self, batch: list[tuple[int, EncodedPrompt]]) -> Iterator[tuple[int, Logits]]:
        llama = self._llama
        parts = []
        for sequence, (_, prompt) in enumerate(batch, start=1):
            shared = self._shared(prompt)
            llama.llama_memory_seq_cp(self._memory, 0, sequence, 0, shared)
            slots = [slot - shared for slot in prompt.slots]
            parts.append((sequence, shared, prompt.input_ids[shared:], slots))
        outputs = self._decode(parts)
        for sequence in range(1, len(batch) + 1):
            llama.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        counts = [len(dimension.options) for dimension in self.contract.rubric.dimensions]
        for (index, _), rows in zip(batch, outputs, strict=True):
            yield index, [row[:count] for row, count in zip(rows, counts, strict=True)]

    def _decode(self, parts: list[tuple[int, int, list[int], list[int]]]) -> list[Logits]:
        """Decode parts (sequence, first position, tokens, slots); label logits at the slots."""
        llama = self._llama
        batch = llama.llama_batch_init(sum(len(tokens) for _, _, tokens, _ in parts), 0, 1)
        try:
            cell, where = 0, []
            for sequence, first, tokens, slots in parts:
                where.append([cell + slot for slot in slots])
                for offset, token in enumerate(tokens):
                    batch.token[cell], batch.pos[cell] = token, first + offset
                    batch.n_seq_id[cell], batch.seq_id[cell][0] = 1, sequence
                    batch.logits[cell] = offset in slots
                    cell += 1
            batch.n_tokens = cell
            status = llama.llama_decode(self._context, batch)
            if status:
                raise ModelError(f"llama.cpp could not decode a batch (status {status}).")
            return [[self._label_logits(position) for position in row] for row in where]
        finally:
            llama.llama_batch_free(batch)

    def _label_logits(self, position: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        pointer = self._llama.llama_get_logits_ith(self._context, position)
        size = self._llama.llama_vocab_n_tokens(self._vocab)
        return np.ctypeslib.as_array(pointer, shape=(size,))[self._label_ids].copy()

    def close(self) -> None:
        """Free the context and the model."""
        if self._context:
            self._llama.llama_free(self._context)
            self._context = None
        if self._model:
            self._llama.llama_model_free(self._model)
            self._model = None

    def __del__(self) -> None:
        if getattr(self, "_model", None):
            self.close()


_LOG_CALLBACK: Any = None


def quiet(llama: Any) -> None:
    """Keep llama.cpp's log out of the progress bars (`SLM_JUDGE_LLAMA_LOG=1` shows it)."""
    global _LOG_CALLBACK
    if _LOG_CALLBACK is None and not os.environ.get("SLM_JUDGE_LLAMA_LOG"):
        _LOG_CALLBACK = llama.llama_log_callback(lambda level, text, data: None)
        llama.llama_log_set(_LOG_CALLBACK, None)
