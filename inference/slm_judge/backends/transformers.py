"""The transformers engine: a merged, a 4-bit or an adapter folder, on CPU or GPU."""

import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from slm_judge.artefact.base import (
    ADAPTER_CONFIG,
    Base,
    cast,
    load_adapter,
    load_base,
    load_config,
    load_model,
    load_tokenizer,
    loading,
    tokens_read,
)
from slm_judge.artefact.device import (
    choose_device,
    devices,
    dtype_for_answers,
    full_width,
    multiplies_bfloat16,
    pack_budget,
    pass_sizes,
)
from slm_judge.artefact.judge_files import Contract
from slm_judge.errors import ModelError, require
from slm_judge.prompt.readers import DecisionReader, EncodedPrompt
from slm_judge.rubric import Rubric

from . import Logits, Reader, memory_errors, out_of_memory
from .packing import Pack, filled, pack, split_into_packs

# More than twice the largest change of the difference between two labels' logits that was measured
# when the batch changed: benchmarks/determinism.py, docs/annotation.md. float16 was not measured:
# it rounds to an eighth of what bfloat16 rounds to.
_NEAR_TIE = {"float32": 0.002, "bfloat16": 0.5, "float16": 0.0625}

# Passes of so many tokens are tried whatever memory is free, and no others are used but those that
# give the same bits: else a row's might depend on that. (In 4 bits, bitsandbytes multiplies up to
# 1,536 tokens by kernels of its own.)
_ALWAYS_TRIED = 2048
_TRIED = 400  # tokens of the rows that show it
# In a mixture of experts, what a row's tokens are decides how many share a product.
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")

# By a mask each row's attention passes over the scores of the whole pack.
_CPU_PACK_BY_MASK = 512


class TransformersBackend:
    """Rows packed behind one copy of the rubric, logits at the slots alone."""

    name = "transformers"

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        contract: Contract,
        path: Path,
        tokens_per_pack: int | None = None,
        compile: bool = False,
    ) -> None:
        """Wrap a loaded causal language model.

        Args:
            model: of transformers, or wrapped by PEFT, with SDPA attention.
            tokenizer: of the same folder.
            contract: the judge's.
            path: the judge's folder.
            tokens_per_pack: bound on the rows' tokens of one forward pass (a longer row goes
                alone).
            compile: the layers, by `torch.compile`.

        Raises:
            ModelError: the model has another attention or no layers that are known, or does not
                belong to its other files.
        """
        require("torch", "transformers")
        from . import row_attention

        self.model, self.contract, self.path = model.eval(), contract, path
        self.files = [path]
        config = model.config.get_text_config()
        if (attention := config._attn_implementation) not in ("sdpa", row_attention.NAME):
            raise ModelError(
                f"{path} is loaded with {attention} attention, which does not keep rows apart. "
                'Load the model with attn_implementation="sdpa".'
            )
        self._by_rows = row_attention.use_where_right(model, model.dtype)
        by_mask = model.device.type == "cpu" and not self._by_rows
        usual = _CPU_PACK_BY_MASK if by_mask else pack_budget(model.device, config)
        self.tokens_per_pack = tokens_per_pack or usual
        kinds = {p.dtype for p in model.parameters() if p.is_floating_point()}
        self._one_dtype = len(kinds) == 1  # so that of the queries is known
        self._tokenizer = tokenizer
        self.reader = self.reader_of(contract.rubric)
        self._prefix = self.reader.prefix
        self.max_tokens = _longest(config, self.reader.prefix, path)
        dtype = str(model.dtype).removeprefix("torch.")
        if dtype not in _NEAR_TIE:
            raise ModelError(
                f"{path} computes in {dtype}; dtype is {', '.join(_NEAR_TIE)} or auto."
            )
        # In 16 bits a CPU gains a quarter by company, which as many near ties take back.
        cheap = model.device.type != "cpu" or dtype == "float32"
        self.noise, self.most_near_ties = _NEAR_TIE[dtype], 1.0 if cheap else 0.2
        self.near_tie = self.noise
        self._cache: Any = None
        width = max(len(dimension.options) for dimension in contract.rubric.dimensions)
        self._label_ids = _label_ids(tokenizer, contract.labels[:width], path)
        self._known = model.get_input_embeddings().weight.shape[0]  # tokens
        if max(*self._label_ids, *self.reader.prefix) >= self._known:
            raise ModelError(
                f"{path}: the tokenizer has more tokens than the model, {self._known}."
            )
        # An adapter's wrapper hides the names of the arguments.
        plain = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._label_rows = _label_rows(model, plain, self._label_ids)
        body = plain if self._label_rows is None else plain.base_model
        self._body = model if self._label_rows is None else body
        self._sizes, self._compiled = list[int](), compile
        if compile:
            self._compile_layers()
        if model.device.type == "cuda" and self._by_rows:
            self._settle_sizes(bounded=tokens_per_pack is not None)

    def reader_of(self, rubric: Rubric) -> DecisionReader:
        """See `Backend.reader_of`."""
        contract = self.contract
        return DecisionReader(self._tokenizer, contract.decision_template, rubric, contract.labels)

    def expect(self, reader: Reader) -> None:
        """See `Backend.expect`."""
        self._prefix, self._cache = reader.prefix, None

    @classmethod
    def load(
        cls,
        folder: Path,
        device: str | None = None,
        dtype: str | None = None,
        tokens_per_pack: int | None = None,
        compile: bool = False,
    ) -> "TransformersBackend":
        """Load a judge's folder. An adapter is put on its base, quantized as in training.

        Args:
            folder: with weights or an adapter, a tokenizer and the contract's files.
            device: cpu, cuda, mps; by default a GPU where there is one.
            dtype: float32, bfloat16, float16, or "auto", that of the files; by default "auto" on
                a CUDA GPU (float16 where it has no bfloat16), and float32 elsewhere.
            tokens_per_pack: see `__init__`.
            compile: see `__init__`.

        Raises:
            ModelError: the folder cannot be loaded.
        """
        require("torch", "transformers")
        require("transformers", "transformers")
        if dtype not in (None, "auto", *_NEAR_TIE):
            raise ModelError(f"dtype is {', '.join(_NEAR_TIE)} or auto, not {dtype!r}.")
        if compile and not choose_device(device, devices()).startswith("cuda"):
            raise ModelError("compile=True gains nothing but on a CUDA GPU. Leave it out.")
        contract = Contract.load(folder)
        with (
            memory_errors("Take the 4-bit or a GGUF file of the judge, or dtype=bfloat16."),
            loading(folder),
        ):
            model, tokenizer = load_weights(folder, device, dtype), load_tokenizer(folder)
            if contract.adapter:
                model = load_adapter(model, folder / contract.adapter)
            return cls(model, tokenizer, contract, folder, tokens_per_pack, compile)

    def fills(self, prompt: EncodedPrompt) -> bool:
        """See `Backend.fills`."""
        return len(prompt.input_ids) - len(self._prefix) >= self.tokens_per_pack

    def run(
        self, prompts: Sequence[EncodedPrompt], alone: bool = False
    ) -> Iterator[tuple[int, Logits]]:
        """See `Backend.run`."""
        prefix = len(self._prefix)
        usual = [i for i, p in enumerate(prompts) if p.input_ids[:prefix] == self._prefix]
        advice = (
            "Not even one row fits: shorten the longest rows, or take the 4-bit or a GGUF file of "
            "the judge."
        )
        with memory_errors(advice):
            for row, outputs in self._packed([prompts[i] for i in usual], alone):
                yield usual[row], outputs
            for i in sorted(set(range(len(prompts))) - set(usual)):
                yield i, self._forward(pack([prompts[i]], 0), 1)[0]

    def _packed(
        self, prompts: Sequence[EncodedPrompt], alone: bool
    ) -> Iterator[tuple[int, Logits]]:
        """Rows behind the rubric; in packs of half the tokens where memory runs out."""
        done, prefix = 0, len(self._prefix)
        while done < len(prompts):
            first, budget = done, prefix + (1 if alone else self.tokens_per_pack)
            for rows in split_into_packs(prompts[first:], prefix, budget):
                chosen = [prompts[first + row] for row in rows]
                try:
                    outputs = self._behind_rubric(chosen)
                except (MemoryError, RuntimeError) as error:
                    tokens = sum(len(one.input_ids) - prefix for one in chosen)
                    full = len(rows) == 1 and self._filled(tokens) == tokens
                    if full or not out_of_memory(error):
                        raise
                else:
                    yield from enumerate(outputs, start=done)
                    done += len(rows)
                    continue
                # What the pass held is free by now: its frames went with the error.
                self._smaller_packs(self._filled(tokens), alone=len(rows) == 1)
                break

    def _smaller_packs(self, tokens: int, alone: bool = False) -> None:
        """Compute half the tokens at a time; where a row did not fit alone, fill passes no more."""
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        fitting = [size for size in self._sizes if size <= tokens // 2 and not alone]
        self.tokens_per_pack = min(self.tokens_per_pack, max(fitting, default=tokens // 2))
        if self._sizes and not fitting:
            self.near_tie = self.noise
        self._sizes = fitting
        warnings.warn(
            f"Out of memory with {tokens} tokens in a pass: {self.tokens_per_pack} at most from "
            "here on, which changes no label (tokens_per_pack).",
            stacklevel=2,
        )

    def _behind_rubric(self, prompts: Sequence[EncodedPrompt]) -> list[Logits]:
        packed = pack(prompts, len(self._prefix), cached=True)
        packed = filled(packed, self._filled(packed.n_tokens))
        cache, self._cache = self._rubric_cache(), None  # half filled where a pass fails
        outputs = self._forward(packed, len(prompts), cache)
        self._cache = cache
        return outputs

    def _filled(self, tokens: int) -> int:
        """Tokens of the pass that computes so many; a row that is longer is filled up too."""
        if not self._sizes:
            return tokens
        return next((n for n in self._sizes if n >= tokens), 1 << (tokens - 1).bit_length())

    def _rubric_cache(self) -> Any:
        """Keys and values of the rubric's tokens, computed once."""
        import torch

        from .row_attention import RubricCache

        prefix, cache = self._prefix, self._cache
        if cache is None:
            cache = RubricCache()
            ids = torch.tensor([prefix], device=self.model.device)
            keep = {"logits_to_keep": 1} if self._label_rows is None else {}
            with self._computing() as computing:
                if self._compiled:
                    computing.enter_context(torch.compiler.set_stance("force_eager"))
                self._body(input_ids=ids, use_cache=True, cache=cache, **keep)
            cache.full = self._by_rows and self.model.device.type != "cpu"
        if extra := cache.get_seq_length() - len(prefix):  # of the last pack
            cache.crop(-extra)
        return cache

    def _forward(self, packed: Pack, n_rows: int, cache: Any = None) -> list[Logits]:
        import torch

        from .row_attention import pack_tensors, told_rows

        device = self.model.device
        on_cpu = device.type == "cpu"
        tensors = pack_tensors(packed, device, mask=on_cpu or not self._by_rows)
        if "attention_mask" in tensors and self._one_dtype:
            tensors["attention_mask"] = as_scores(tensors["attention_mask"], self.model.dtype)
        if self._by_rows and not (on_cpu and n_rows == 1):  # of one row a mask throws little away
            tensors |= told_rows(packed, device, cache)
        tensors |= {"cache": cache, "use_cache": cache is not None}
        with self._computing():
            if self._label_rows is None:
                logits = self._body(**tensors).logits[0][:, self._label_ids].float()
            else:
                slots = tensors.pop("logits_to_keep")
                hidden = self._body(**tensors).last_hidden_state[0, slots]
                hidden = hidden.to(self._label_rows[0].dtype)
                logits = torch.nn.functional.linear(hidden, *self._label_rows).float()
        values = logits.cpu().numpy().reshape(n_rows, -1, len(self._label_ids))
        counts = [len(dimension.options) for dimension in self.contract.rubric.dimensions]
        return [[row[k, :count] for k, count in enumerate(counts)] for row in values]

    def _computing(self) -> ExitStack:
        """What holds in every pass."""
        import torch

        stack = ExitStack()
        stack.enter_context(torch.inference_mode())
        stack.enter_context(full_width(self.model.device))
        if self._compiled:  # layers differ by their index, and in 4 bits have many parts
            few = {"allow_unspec_int_on_nn_module": True, "recompile_limit": 64}
            stack.enter_context(torch._dynamo.config.patch(few))
        return stack

    def _settle_sizes(self, bounded: bool) -> None:
        """Fill passes up to few sizes, where a row then has the same bits whatever is beside it.

        Which kernel multiplies, and with it the order of sums, goes by the number of tokens of a
        pass, not by what or where they are. So whether rows have the same bits first and last in a
        pass, among others and in passes of each size, is tried. If so, no label depends on a row's
        company, and near ties need no second look.

        Args:
            bounded: whether no pass may have more tokens than `tokens_per_pack`, as was asked for.
        """
        import torch

        config = self.model.config.get_text_config()
        if self._label_rows is None or any(getattr(config, name, None) for name in _EXPERTS):
            return
        while sizes := pass_sizes(self.tokens_per_pack):
            try:
                same = self._same_bits(sorted({*pass_sizes(_ALWAYS_TRIED), *sizes}))
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
            else:
                fitting = [size for size in same if size <= self.tokens_per_pack]
                if fitting := fitting or ([] if bounded else same[:1]):
                    self._sizes, self.tokens_per_pack, self.near_tie = fitting, fitting[-1], 0.0
                break
            if self.tokens_per_pack <= _ALWAYS_TRIED:
                break
            self._smaller_packs(self.tokens_per_pack)
        torch.cuda.empty_cache()  # others may need it more

    def _same_bits(self, sizes: Sequence[int]) -> list[int]:
        """Of the sizes those around `_ALWAYS_TRIED` that give rows the same bits."""

        def answers(size: int, first: bool) -> "np.ndarray[Any, Any]":
            self._sizes, company = [size], self._made_up(size - _TRIED, rng)
            found = self._behind_rubric([*tried, *company] if first else [*company, *tried])
            ours = found[: len(tried)] if first else found[len(company) :]
            return np.concatenate([logits for row in ours for logits in row])

        rng, filling, same = random.Random(0), self._sizes, list[int]()  # noqa: S311
        tried = self._made_up(_TRIED, rng)
        smaller = [size for size in sizes if size < _ALWAYS_TRIED]
        try:
            wanted = answers(_ALWAYS_TRIED, first=True)
            for some in (sizes[len(smaller) :], smaller[::-1]):  # away from it, both ways
                for size in some:
                    if not np.array_equal(answers(size, first=False), wanted):
                        break
                    same.append(size)
                if not same:
                    break
        finally:
            self._sizes = filling
        return sorted(same)

    def _made_up(self, tokens: int, rng: random.Random) -> list[EncodedPrompt]:
        """Rows of so many tokens together, or a few less."""
        room, n_slots = self.max_tokens - len(self._prefix), len(self.contract.rubric.dimensions)
        found, lengths = list[EncodedPrompt](), cycle(min(n, room) for n in (30, 7, 64, 99))
        while (length := next(lengths)) <= tokens:
            ids = [*self._prefix, *(rng.randrange(self._known) for _ in range(length))]
            found.append(EncodedPrompt(ids, [len(ids) - 1] * n_slots))
            tokens -= length
        return found

    def _compile_layers(self) -> None:
        """Fuse what lies between the products of each layer.

        Raises:
            ModelError: transformers does not say what its layers are, or they cannot be compiled.
        """
        from transformers.modeling_layers import GradientCheckpointingLayer

        from .row_attention import leave_uncompiled

        parts = self._body.modules()
        layers = [part for part in parts if isinstance(part, GradientCheckpointingLayer)]
        if not layers:
            raise ModelError(f"{self.path}: compile=True knows no layers of this model.")
        leave_uncompiled()
        for layer in layers:
            layer.compile(dynamic=True)
        try:
            self._behind_rubric(self._made_up(_TRIED, random.Random(0)))  # noqa: S311
        except Exception as error:
            if out_of_memory(error):
                raise
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelError(f"compile=True: PyTorch cannot compile here: {said}") from error

    def close(self) -> None:
        """Free the model."""
        self._cache = None
        del self.model, self._body


def _label_ids(tokenizer: Any, labels: Sequence[str], path: Path) -> list[int]:
    found = tokenizer(list(labels), add_special_tokens=False)["input_ids"]
    if odd := [label for label, ids in zip(labels, found, strict=True) if len(ids) != 1]:
        raise ModelError(
            f"{path}: the labels {', '.join(odd)} of decision.json are not one token each of this "
            "tokenizer; they belong to another model."
        )
    return [token for (token,) in found]


def _longest(config: Any, prefix: Sequence[int], path: Path) -> int:
    """Tokens that the model can read, from its config.json."""
    given = config.max_position_embeddings
    if not isinstance(given, int) or not len(prefix) < given < 2**31:
        raise ModelError(
            f"{path / 'config.json'}: max_position_embeddings is {given!r}; it is the number of "
            f"tokens that the model can read, of which the rubric alone has {len(prefix)}."
        )
    if (read := tokens_read(config)) <= len(prefix):
        raise ModelError(
            f"{path}: layers attend to {read} tokens (a sliding window), of which the rubric alone "
            f"has {len(prefix)}. Shorten the rubric, or take another base."
        )
    return read


def _label_rows(model: Any, plain: Any, label_ids: Sequence[int]) -> tuple[Any, Any] | None:
    """The labels' rows of the output layer and their biases, in float32 or wider.

    None where the logits of `model` (which may wrap `plain`) are not this layer's: Gemma caps
    them, Granite and Cohere scale them, an adapter may train the layer.
    """
    import torch

    head, body = plain.get_output_embeddings(), plain.base_model
    if type(head) is not torch.nn.Linear or body is plain:
        return None
    with torch.inference_mode():
        options = {"input_ids": torch.tensor([label_ids], device=model.device), "use_cache": False}
        ours = head(body(**options).last_hidden_state)
        if not torch.equal(ours.float(), model(**options).logits.float()):
            return None
        # A GPU's sums in float32 depend on how many rows there are: in float64 it does not show.
        wide = torch.float64 if model.device.type == "cuda" else torch.float32
        bias = None if head.bias is None else head.bias[label_ids].to(wide)
        return head.weight[label_ids].to(wide), bias


def as_scores(mask: Any, dtype: Any) -> Any:
    """What is added to attention's scores for a mask: 0 where it is true, else minus infinity.

    Of a mask of booleans SDPA makes this anew in every layer, and training keeps each for the
    backward pass: of 8,192 tokens 134 MB a layer in 16 bits.

    Args:
        mask: ... x tokens, of booleans.
        dtype: in which attention is computed.

    Returns:
        The same shape, in strides of multiples of 8: CUDA's kernels would copy another one.
    """
    import torch

    tokens = mask.shape[-1]
    shape = (*mask.shape[:-1], tokens + -tokens % 8)
    scores = torch.full(shape, -torch.inf, dtype=dtype, device=mask.device)[..., :tokens]
    return scores.masked_fill_(mask, 0.0)


def load_weights(folder: Path, device: str | None = None, dtype: str | None = None) -> Any:
    """The model of a judge's or a base's folder; see `TransformersBackend.load`."""
    import torch

    device = choose_device(device, devices())
    if (folder / ADAPTER_CONFIG).exists():
        require("peft", "transformers")
        base = Base.load(folder)
        dtype = base.dtype if dtype == "auto" else dtype
        return load_adapter(load_base(base, device, dtype), folder)
    config = load_config(folder)
    if dtype is None:
        files = str(config.dtype or "auto").removeprefix("torch.")
        dtype = dtype_for_answers(device, files, multiplies_bfloat16(device))
    if not hasattr(config, "quantization_config"):
        return load_model(folder, device, dtype)
    require("bitsandbytes", "transformers")
    model = load_model(folder, device, dtype)
    if dtype != "auto":  # transformers leaves what is not in 4 bits as it is in the files
        cast(model, getattr(torch, dtype))
    return model
