"""Judges, bases, tokenizers and adapters of strangers: nothing of theirs runs, whoever says "y"."""

import json
import os
import pickle
import shutil
import subprocess
import sys

import pytest
from huggingface_hub import HfApi

from tests.conftest import LIMIT

RUN_ALL = """
import sys
from pathlib import Path
from slm_judge import cli

marker, *pairs = sys.argv[1:]
for number, (model, command) in enumerate(zip(pairs[::2], pairs[1::2])):
    judge = ["annotate", "data.csv", "--model", model, "--output", f"{number}.csv"]
    check = ["rubric", "check", "rubric.yaml", "--base", model]
    sys.argv = ["slm-judge", *(judge if command == "annotate" else check)]
    print("CASE", file=sys.stderr, flush=True)
    try:
        cli.main()
        code = 0
    except SystemExit as stop:
        code = stop.code
    print(f"exit code {code}", file=sys.stderr, flush=True)
from transformers import AutoConfig
from transformers.integrations import hub_kernels
print("kernels", hub_kernels._kernels_enabled, "ran", Path(marker).exists())
try:
    AutoConfig.from_pretrained(pairs[0])  # as it would have been
except Exception:
    print("would run", Path(marker).exists())
"""


class Theirs:
    """Writes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (self.marker, "w")


def change(folder, name, **values):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture
def strange(run, logged_in, tmp_path):
    """(what is strange, model, command, what is said or None where it does no harm)."""
    marker = tmp_path / "marker"
    code = f"open({str(marker)!r}, 'w')\nclass Config: pass\nclass Model: pass\nclass Tokenizer: pass\n"
    (tmp_path / "evil.py").write_text(code)
    auto_map = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    elsewhere = {name: f"me/evil--{value}" for name, value in auto_map.items()}

    def copy(kind, name, **config):
        folder = tmp_path / name
        shutil.copytree(getattr(run, kind), folder)
        (folder / "evil.py").write_text(code)
        if config:
            change(folder, "config.json", **config)
        return folder

    api = HfApi()
    api.create_repo("me/evil", exist_ok=True)
    evil = copy("merged", "evil", model_type="evil", architectures=["Evil"], auto_map=auto_map)
    for name in ("config.json", "evil.py", "tokenizer.json", "tokenizer_config.json"):
        api.upload_file(path_or_fileobj=evil / name, path_in_repo=name, repo_id="me/evil")

    def adapter(name, **base):
        folder = copy("adapter", name)
        change(folder, "base.json", **base)
        return folder

    tokenizer = copy("merged", "tokenizer")
    theirs = {"AutoTokenizer": [None, "evil.Tokenizer"]}
    change(tokenizer, "tokenizer_config.json", auto_map=theirs, tokenizer_class="Tokenizer")
    change(tokenizer, "config.json", model_type="evil", auto_map=auto_map)
    pickled = copy("adapter", "pickled")
    (pickled / "adapter_model.safetensors").unlink()
    (pickled / "adapter_model.bin").write_bytes(pickle.dumps(Theirs(str(marker))))
    weights = copy("merged", "weights")
    (weights / "model.safetensors").unlink()
    (weights / "pytorch_model.bin").write_bytes(pickle.dumps(Theirs(str(marker))))
    imports = copy("adapter", "imports")
    change(imports, "adapter_config.json", megatron_config={"a": 1}, megatron_core="evil")
    mixture = copy("adapter", "mixture")
    change(mixture, "adapter_config.json", peft_type="XLORA", adapters={"0": "me/evil"})
    quantized = copy("merged", "quantized", quantization_config={"quant_method": "mxfp4"})
    found = [
        ("judge", evil, "annotate", "needs Python code of its own"),
        ("judge with code elsewhere", copy("merged", "far", model_type="x", auto_map=elsewhere),
         "annotate", "needs Python code of its own"),
        ("judge that we know", copy("merged", "known", auto_map=auto_map), "annotate", None),
        ("tokenizer", tokenizer, "annotate", "needs Python code of its own"),
        ("base in a folder", adapter("based", base=str(evil)), "annotate", "Python code of its own"),
        ("base on the Hub", adapter("hub", base="me/evil"), "annotate", "Python code of its own"),
        ("base of the wrong kind", adapter("twice", base=str(run.adapter)), "annotate",
         "is an adapter; a model was expected"),
        ("base for its tokenizer", tokenizer, "check", "needs Python code of its own"),
        ("pickled adapter", pickled, "annotate", "has no adapter_model.safetensors"),
        ("pickled weights", weights, "annotate", "cannot be loaded"),
        ("adapter that imports", imports, "annotate", "is not that of an adapter as"),
        ("adapter of adapters", mixture, "annotate", "is not that of an adapter as"),
        ("kernels by quantization", quantized, "annotate", "quantized with 'mxfp4'"),
        ("kernels by name", copy("merged", "kernel", attn_implementation="me/evil"), "annotate", None),
    ]  # fmt: skip
    return marker, found


def test_nothing_of_theirs_runs(strange, tmp_path, support):
    marker, found = strange
    (tmp_path / "data.csv").write_text("text\nhello\n")
    (tmp_path / "rubric.yaml").write_text(json.dumps(support.model_dump(mode="json")))
    pairs = [str(part) for _, model, command, _ in found for part in (model, command)]
    result = subprocess.run(
        [sys.executable, "-c", RUN_ALL, str(marker), *pairs], cwd=tmp_path, input="y\n" * 100,
        capture_output=True, text=True, timeout=LIMIT, env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert "kernels False ran False" in result.stdout, result.stdout
    assert "would run True" in result.stdout
    said = [" ".join(part.split()) for part in result.stderr.split("CASE\n")[1:]]
    for (name, _, _, expected), text in zip(found, said, strict=True):
        assert f"exit code {2 if expected else 0}" in text, (name, text)
        assert (expected or "") in text, (name, text)
        assert "Traceback" not in text, name
