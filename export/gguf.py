"""The merged model as GGUF files, each a complete judge."""

import ctypes
import json
import math
import os
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.filesize import decimal

from slm_judge.artefact.calibration import as_json
from slm_judge.artefact.judge_files import QUESTION_TYPES, Contract
from slm_judge.backends.gguf import (
    BASE_KEY,
    CALIBRATION_KEY,
    RUBRIC_KEY,
    TEMPLATE_NAME,
    VERSION_KEY,
)
from slm_judge.errors import JudgeError, ModelError, require
from slm_judge.files import TEMPORARY, atomic_file
from slm_judge.offline.llama_source import CONVERTER, llama_cpp_source
from slm_judge.run import Run
from slm_judge.version import __version__

from .gptq import Q4_0, Q5_0, Unrounded, importance, save_moved
from .importance import Importance, in_gguf

MOVED = {"Q4_0": Q4_0}
"""Quantizations before which the weights are moved; the others choose their scales by rules of
their own, which would undo it."""
VALUES, VALUES_TYPE, VALUES_GRID = "self_attn.v_proj", "Q5_0", Q5_0
"""What these files hold of the layer that lost most by 4 bits in the judges that were looked at; it
is 3 to 7 % of the linear weights."""
WEIGHED = "IQ"
"""Start of the names of quantizations that round by what inputs count. K-quants lose by it on
judges, where their blocks do not fit the model's width at the latest (docs/results.md)."""


def export_gguf(run: Run, console: Console, unrounded: Unrounded | None = None) -> None:
    """Write `gguf/<name>-<quantization>.gguf` for each quantization of the recipe.

    `unrounded` as for `save_moved`.

    Raises:
        JudgeError: the run has no merged model, or llama.cpp knows no such quantization.
    """
    merged = run.require(run.merged, f"export {run.folder}")
    quantizations = run.recipe().export.gguf
    for name in quantizations:
        quantization_type(name)
    for name in quantizations:
        if grid := MOVED.get(name):
            with tempfile.TemporaryDirectory(dir=run.folder, prefix=TEMPORARY) as moved:
                save_moved(run, Path(moved), grid, console, {VALUES: VALUES_GRID}, unrounded)
                _export_types(run, Path(moved), [name], values=VALUES_TYPE)
    others = [name for name in quantizations if name not in MOVED]
    weighed = [name for name in others if name.startswith(WEIGHED)]
    if weighed:
        _export_types(run, merged, weighed, importance(run))
    if plain := [name for name in others if name not in weighed]:
        _export_types(run, merged, plain)


def _export_types(
    run: Run,
    model: Path,
    names: Sequence[str],
    counts: Importance | None = None,
    values: str | None = None,
) -> None:
    """Write the GGUF files of a folder, by way of one in 16 bits."""
    with tempfile.TemporaryDirectory(dir=run.folder, prefix=TEMPORARY) as work:
        converted = convert(model, Path(work) / "converted.gguf", "bf16", run.recipe().name)
        judge = add_keys(converted, Path(work) / "judge.gguf", Contract.load(model))
        converted.unlink()
        for name in names:
            with atomic_file(run.gguf_file(name)) as path:
                quantize(judge, path, name, counts, values)


def convert(
    folder: Path,
    output: Path,
    dtype: str,
    name: str,
    converter: str = CONVERTER,
    options: Sequence[str] = (),
) -> Path:
    """Convert a folder of transformers or PEFT with llama.cpp's own converter.

    Args:
        folder: weights, and the tokenizer of a whole model.
        output: the GGUF file to write.
        dtype: "f32", "f16" or "bf16".
        name: of the model, written into the file.
        converter: which one.
        options: further ones of an adapter's, which writes no name.

    Raises:
        ModelError: the folder brings code of its own, or the converter failed; its last words are
            in the message.
    """
    require("gguf", "export")
    require("sentencepiece", "export")
    _refuse_code(folder)
    source = llama_cpp_source()
    command = [
        *(sys.executable, "-P", "-B", str(source / converter), str(folder.resolve())),
        *("--outfile", str(output.resolve()), "--outtype", dtype),
        *(options or ("--model-name", name)),
    ]
    result = subprocess.run(  # noqa: S603
        command, capture_output=True, text=True, check=False, cwd=source, env=_environment(source)
    )
    if result.returncode or not output.exists():
        last = "\n".join(result.stderr.strip().splitlines()[-5:])
        raise ModelError(f"llama.cpp's converter could not convert {folder}:\n{last}")
    return output


def _refuse_code(folder: Path) -> None:
    """Of a tokenizer that brings code, the converter would run it (`trust_remote_code=True`)."""
    code = [file.name for file in folder.rglob("*.py")]
    for file in folder.glob("*config.json"):
        try:
            settings = json.loads(file.read_bytes())
        except ValueError as error:
            raise ModelError(f"{file} cannot be read: {error}.") from error
        if '"auto_map"' in json.dumps(settings):  # at any depth, however it is written
            code.append(f"auto_map in {file.name}")
    if code:
        raise ModelError(f"{folder} is not converted, since it brings code: {', '.join(code)}.")


def _environment(source: Path) -> dict[str, str]:
    """No token, and modules from the converter's own folder and from where ours come, alone.

    Whatever else lies in the folder in which a person happens to be is not run.
    """
    paths = [str(source), *(path for path in sys.path if path and Path(path) != Path.cwd())]
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("PYTHON", "HF_", "HUGGING_FACE_", "NO_LOCAL_GGUF"))
    }
    return {**kept, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}


def add_keys(source: Path, output: Path, contract: Contract | None, base: str = "") -> Path:
    """Copy a GGUF file and add the keys that make it a judge, and which base it is or needs."""
    gguf = require("gguf", "export")
    from gguf.scripts.gguf_new_metadata import MetadataDetails, copy_with_new_metadata

    reader = gguf.GGUFReader(source, "r")
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(output, arch=architecture, endianess=reader.endianess)
    text, number = gguf.GGUFValueType.STRING, gguf.GGUFValueType.FLOAT32
    texts, numbers = {VERSION_KEY: __version__} | ({BASE_KEY: base} if base else {}), {}
    if contract:
        texts |= {
            f"{architecture}.decision.type": "nimble",
            f"tokenizer.chat_template.{TEMPLATE_NAME}": contract.systemone_template,
            RUBRIC_KEY: contract.rubric.to_json(),
            CALIBRATION_KEY: as_json(contract.calibrations),
        }
        prefix = f"{architecture}.decision.temperature"
        numbers = {f"{prefix}.{kind}": contract.temperature(kind) for kind in QUESTION_TYPES}
    keys = {key: MetadataDetails(text, value) for key, value in texts.items()}
    keys |= {key: MetadataDetails(number, value) for key, value in numbers.items()}
    with redirect_stderr(StringIO()):  # for its progress bar; what goes wrong is raised
        copy_with_new_metadata(reader, writer, keys, remove_metadata=[])
    return output


def quantization_type(name: str) -> int:
    """llama.cpp's number for a quantization such as Q4_K_M.

    Raises:
        JudgeError: llama.cpp knows no such quantization.
    """
    llama = require("llama_cpp", "export")
    prefixes = ("LLAMA_FTYPE_MOSTLY_", "LLAMA_FTYPE_ALL_")
    for prefix in prefixes:
        number = getattr(llama, prefix + name, None)
        if isinstance(number, int):
            return number
    known = sorted(
        key.removeprefix(prefixes[0]) for key in vars(llama) if key.startswith(prefixes[0])
    )
    raise JudgeError(f"llama.cpp knows no quantization {name!r}; it knows {', '.join(known)}.")


def quantize(
    source: Path,
    output: Path,
    name: str,
    importance: Importance | None = None,
    values: str | None = None,
) -> None:
    """Quantize a GGUF file, keeping its keys.

    Args:
        source: in 16 bits or more.
        output: the file to write.
        name: of the quantization.
        importance: of the inputs of layers, by which llama.cpp weighs what rounding changes.
        values: type of the attention's values, where it is another one.

    Raises:
        ModelError: llama.cpp refused.
    """
    llama = require("llama_cpp", "export")
    from slm_judge.backends.gguf import quiet, usable_cores

    quiet(llama)
    params = llama.llama_model_quantize_default_params()
    params.ftype = quantization_type(name)
    params.nthread = usable_cores()
    if values:
        params.tt_overrides = (llama.llama_model_tensor_override * 2)(
            (rb"attn_v\.weight", getattr(llama, f"GGML_TYPE_{values}"))
        )
    if importance:
        params.imatrix = _matrix(in_gguf(importance, _architecture(source)))
    status = llama.llama_model_quantize(
        str(source).encode(), str(output).encode(), ctypes.byref(params)
    )
    if status:
        raise ModelError(f"llama.cpp could not quantize {source} to {name} (status {status}).")


def _architecture(path: Path) -> str:
    with path.open("rb") as file:
        _, _, _, n_keys = _read(file, "IIQQ")
        for _ in range(n_keys):
            name, (kind,) = _text(file), _read(file, "I")
            if name == "general.architecture":
                return _text(file)
            _skip(file, kind)
    raise ModelError(f"{path} names no architecture.")


def _text(file: IO[bytes]) -> str:
    return file.read(*_read(file, "Q")).decode()


def _matrix(importance: Importance) -> Any:
    """As llama.cpp takes it: entries until one without a name."""
    from llama_cpp import llama_model_imatrix_data as entry

    as_floats = ctypes.POINTER(ctypes.c_float)
    entries = [entry(name.encode(), values.ctypes.data_as(as_floats), values.size)
               for name, values in importance.items()]  # fmt: skip
    return (entry * (len(entries) + 1))(*entries, entry())


# Kinds of values in a GGUF file: bytes of each, but of texts and lists.
_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_TEXT, _LIST = 8, 9


def contents(path: Path) -> str:
    """The size of a GGUF file, and the share of each type of number in the bytes of its weights.

    llama.cpp takes another type for a layer whose width is no multiple of the type's block. The
    reader of gguf needs many seconds for a vocabulary, which is stepped over here.
    """
    gguf, sizes = require("gguf", "export"), Counter[str]()
    with path.open("rb") as file:
        _, _, n_tensors, n_keys = _read(file, "IIQQ")
        for _ in range(n_keys):
            _skip(file, _TEXT)
            _skip(file, *_read(file, "I"))
        for _ in range(n_tensors):
            _skip(file, _TEXT)
            (n_dimensions,) = _read(file, "I")
            *shape, number, _ = _read(file, f"{n_dimensions}QIQ")
            kind = gguf.GGMLQuantizationType(number)
            block, n_bytes = gguf.GGML_QUANT_SIZES[kind]
            sizes[kind.name] += math.prod(shape) // block * n_bytes
    shares = {name: round(100 * size / sizes.total()) for name, size in sizes.most_common()}
    told = ", ".join(f"{name} {share} %" for name, share in shares.items() if share)
    return f"{decimal(path.stat().st_size)}: {told}"


def _read(file: IO[bytes], form: str) -> tuple[int, ...]:
    return struct.unpack(f"<{form}", file.read(struct.calcsize(f"<{form}")))


def _skip(file: IO[bytes], kind: int) -> None:
    if kind == _LIST:
        kind, count = _read(file, "IQ")
        if kind in _WIDTHS:
            file.seek(count * _WIDTHS[kind], os.SEEK_CUR)
        else:
            for _ in range(count):
                _skip(file, kind)
    else:
        (width,) = _read(file, "Q") if kind == _TEXT else (_WIDTHS[kind],)
        file.seek(width, os.SEEK_CUR)
