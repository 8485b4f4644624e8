"""The template in the GGUF file, rendered by the Jinja engine that llama-server uses."""

import json
import random
import shutil
import subprocess
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

import pytest

from slm_judge import Rubric
from slm_judge.artefact.judge_files import Contract
from slm_judge.data.text import item_state
from slm_judge.offline.llama_source import cache_folder, llama_cpp_source
from slm_judge.prompt.templates import compile_template, systemone_questions
from slm_judge.text import normalise
from tests.conftest import LIMIT, ROOT
from tests.inference.test_prompt import random_text

PROGRAM = Path(__file__).with_name("llama_jinja.cpp")


@pytest.fixture(scope="module")
def engine():
    """The engine, compiled once (about 25 s) and cached."""
    source = llama_cpp_source()
    library = Path(find_spec("llama_cpp").origin).parent / "lib"
    linked = sha256(str(library).encode()).hexdigest()[:8]  # another environment has its own
    binary = cache_folder() / f"llama-jinja-{source.parents[1].name}-{linked}"
    if not binary.exists():
        compiler = shutil.which("c++") or shutil.which("g++")
        assert compiler, "the suite needs the C++ compiler that llama-cpp-python needs"
        parts = [
            source / f"common/jinja/{p}.cpp"
            for p in ("lexer", "parser", "runtime", "value", "string")
        ]
        subprocess.run(
            [
                *(compiler, "-std=c++17", "-O0", PROGRAM, *parts),
                *(source / "common/json.cpp", source / "common/unicode.cpp"),
                *(f"-I{source / folder}" for folder in ("common", "vendor", "ggml/include")),
                *(f"-L{library}", "-lggml-base", "-lggml", f"-Wl,-rpath,{library}"),
                *("-o", binary.with_suffix(".new")),
            ],
            check=True,
            timeout=LIMIT,
        )
        binary.with_suffix(".new").rename(binary)
    return binary


@pytest.mark.parametrize("name", ["emotion", "answer-quality", "support-messages"])
def test_llama_server_renders_the_same_prompt(engine, tokenizer, name):
    rubric = Rubric.from_file(ROOT / f"rubrics/{name}.yaml")
    contract = Contract.build(rubric, tokenizer)
    questions, rng = systemone_questions(rubric, contract.labels), random.Random(name)
    template = compile_template(contract.systemone_template)
    requests, expected = [], []
    for _ in range(60):
        row = {field: "x" + random_text(rng).replace("\x00", "") for field in rubric.fields}
        state = item_state(rubric, row)
        assert all(normalise(text) == text for text in state.values())
        inputs = {**rng.choice(questions), "state": state, "questions": questions, "images": []}
        requests.append(json.dumps({"template": contract.systemone_template, "inputs": inputs}))
        expected.append(template.render(**inputs))
    result = subprocess.run(
        [engine], input="\n".join(requests).encode(), capture_output=True, check=True, timeout=LIMIT
    )
    assert [json.loads(line) for line in result.stdout.splitlines()] == expected
