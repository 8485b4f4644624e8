"""The merged model as GGUF files, each a complete judge."""

import ctypes
import os
import subprocess
import sys
import tempfile
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

from slm_judge.artefact.judge_files import QUESTION_TYPES, Contract
from slm_judge.backends.gguf import RUBRIC_KEY, TEMPLATE_NAME, VERSION_KEY
from slm_judge.errors import JudgeError, ModelError, require
from slm_judge.files import atomic_file
from slm_judge.offline.llama_source import llama_cpp_source
from slm_judge.run import Run
from slm_judge.version import __version__


def export_gguf(run: Run) -> None:
    """Write `gguf/<name>-<quantization>.gguf` for each quantization of the recipe.

    Raises:
        JudgeError: the run has no merged model, or llama.cpp knows no such quantization.
    """
    merged = run.require(run.merged, f"export {run.folder}")
    quantizations = run.recipe().export.gguf
    for name in quantizations:
        quantization_type(name)
    contract = Contract.load(merged)
    with tempfile.TemporaryDirectory(dir=run.folder, prefix=".gguf-") as work:
        converted = convert(merged, Path(work) / "converted.gguf", "bf16", run.recipe().name)
        judge = add_keys(converted, Path(work) / "judge.gguf", contract)
        converted.unlink()
        for name in quantizations:
            with atomic_file(run.gguf_file(name)) as path:
                quantize(judge, path, name)


def convert(folder: Path, output: Path, dtype: str, name: str) -> Path:
    """Convert a transformers folder with llama.cpp's own converter.

    Args:
        folder: weights and tokenizer.
        output: the GGUF file to write.
        dtype: "f32", "f16" or "bf16".
        name: of the model, written into the file.

    Raises:
        ModelError: the converter failed; its last words are in the message.
    """
    require("gguf", "export")
    require("sentencepiece", "export")
    script = llama_cpp_source() / "convert_hf_to_gguf.py"
    command = [
        *(sys.executable, str(script), str(folder), "--outfile", str(output)),
        *("--outtype", dtype, "--model-name", name),
    ]
    result = subprocess.run(  # noqa: S603
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    if result.returncode or not output.exists():
        last = "\n".join(result.stderr.strip().splitlines()[-5:])
        raise ModelError(f"llama.cpp's converter could not convert {folder}:\n{last}")
    return output


def add_keys(source: Path, output: Path, contract: Contract) -> Path:
    """Copy a GGUF file and add the keys that make it a judge."""
    gguf = require("gguf", "export")
    from gguf.scripts.gguf_new_metadata import MetadataDetails, copy_with_new_metadata

    reader = gguf.GGUFReader(source, "r")
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(output, arch=architecture, endianess=reader.endianess)
    text, number = gguf.GGUFValueType.STRING, gguf.GGUFValueType.FLOAT32
    keys: dict[str, Any] = {
        f"{architecture}.decision.type": MetadataDetails(text, "nimble"),
        f"tokenizer.chat_template.{TEMPLATE_NAME}": MetadataDetails(
            text, contract.systemone_template
        ),
        RUBRIC_KEY: MetadataDetails(text, contract.rubric.to_json()),
        VERSION_KEY: MetadataDetails(text, __version__),
    }
    for kind in QUESTION_TYPES:
        key = f"{architecture}.decision.temperature.{kind}"
        keys[key] = MetadataDetails(number, contract.temperature(kind))
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


def quantize(source: Path, output: Path, name: str) -> None:
    """Quantize a GGUF file, keeping its keys.

    Raises:
        ModelError: llama.cpp refused.
    """
    llama = require("llama_cpp", "export")
    from slm_judge.backends.gguf import quiet

    quiet(llama)
    params = llama.llama_model_quantize_default_params()
    params.ftype = quantization_type(name)
    params.nthread = os.cpu_count() or 1
    status = llama.llama_model_quantize(
        str(source).encode(), str(output).encode(), ctypes.byref(params)
    )
    if status:
        raise ModelError(f"llama.cpp could not quantize {source} to {name} (status {status}).")
