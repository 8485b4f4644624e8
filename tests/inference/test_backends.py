"""The engines: what they load, how they compute, and what they refuse."""

import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers

from slm_judge import Judge
from slm_judge.artefact import device
from slm_judge.artefact.base import Base, base_commit, load_base, locate_base
from slm_judge.artefact.device import (
    choose_device,
    devices,
    dtype_for_answers,
    dtype_for_training,
    full_width,
    pack_budget,
    tokens_that_fit,
    usual_width,
)
from slm_judge.artefact.judge_files import Contract
from slm_judge.artefact.locate import choose_gguf
from slm_judge.backends import out_of_memory, row_attention
from slm_judge.backends.transformers import TransformersBackend
from slm_judge.errors import DataError, ModelError
from slm_judge.judge.answer import gap

SHAPE = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 32, "vocab_size": 151936,
    "max_position_embeddings": 2048,
}  # fmt: skip
TEXTS = [f"Parcel {n} has not arrived. " * (1 + n % 4) for n in range(12)]


@pytest.fixture(scope="module")
def contract(support, tokenizer):
    return Contract.build(support, tokenizer)


@pytest.fixture(scope="module")
def folder(contract, tokenizer, tmp_path_factory):
    """A judge that was never trained, as a folder of transformers."""
    path = tmp_path_factory.mktemp("judge")
    random_model("Qwen3").save_pretrained(path)
    tokenizer.save_pretrained(path)
    contract.save(path)
    return path


def random_model(name, cls=None, **settings):
    """Random weights, large enough that logits are far from rounding."""
    kind = "Gemma3Text" if name == "Gemma3" else name
    config = getattr(transformers, f"{kind}Config")(**SHAPE | {"initializer_range": 0.2} | settings)
    torch.manual_seed(0)
    return (cls or getattr(transformers, f"{name}ForCausalLM"))(config).eval()


def adapter(base, path, contract, tokenizer):
    """An adapter with weights that change every answer."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(load_base(base, "cpu"), LoraConfig(r=4, target_modules="all-linear"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    contract.save(path)
    base.save(path)
    return path


def one_row_at_a_time(backend, texts):
    """Label logits of plain forward passes of whole prompts, through the model's own head."""
    ids, rows = backend._label_ids, []
    for prompt in backend.reader.encode([{"text": text} for text in texts]):
        with torch.inference_mode():
            output = backend.model(
                input_ids=torch.tensor([prompt.input_ids]),
                logits_to_keep=torch.tensor(prompt.slots),
                use_cache=False,
            )
        rows.append(output.logits[0][:, ids].float().numpy())
    return rows


def packed(backend, texts):
    prompts = backend.reader.encode([{"text": text} for text in texts])
    found = dict(backend.run(prompts))
    return [found[index] for index in range(len(texts))]


def labels(judge, texts=TEXTS):
    return [annotation.labels for annotation in judge.annotate(texts)]


def assert_equal_logits(backend, atol=1e-3):
    whole = one_row_at_a_time(backend, TEXTS)
    for ours, theirs in zip(packed(backend, TEXTS), whole, strict=True):
        for k, logits in enumerate(ours):
            assert logits.dtype == np.float32
            assert np.allclose(logits, theirs[k, : len(logits)], atol=atol)


# --- logits of the labels ---


def test_label_rows_alone_give_the_model_s_logits(contract, tokenizer, tmp_path):
    for model in (random_model("Qwen3"), random_model("Qwen3", tie_word_embeddings=True)):
        backend = TransformersBackend(model, tokenizer, contract, tmp_path)
        assert backend._label_rows[0].shape == (5, 64)  # as many as the longest dimension has
        assert_equal_logits(backend)


def test_a_bias_counts(contract, tokenizer, tmp_path):
    model = random_model("Qwen3")
    model.lm_head.bias = torch.nn.Parameter(torch.randn(SHAPE["vocab_size"]))
    backend = TransformersBackend(model, tokenizer, contract, tmp_path)
    assert backend._label_rows[1].shape == (5,)
    assert_equal_logits(backend)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("Gemma3", {"final_logit_softcapping": 5.0, "query_pre_attn_scalar": 32}),
        ("Granite", {"logits_scaling": 4.0}),
        ("Cohere", {"logit_scale": 0.25}),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_models_that_change_their_logits_keep_their_own_head(
    contract, tokenizer, tmp_path, name, settings, dtype
):
    model = random_model(name, **settings).to(getattr(torch, dtype))
    backend = TransformersBackend(model, tokenizer, contract, tmp_path)
    assert backend._label_rows is None
    assert_equal_logits(backend, 1e-3 if dtype == "float32" else 0.5)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_adapter_and_merged_give_the_same_logits(contract, tokenizer, tmp_path, quantization):
    base = Base("tiny", quantization=quantization)
    backend = TransformersBackend.load(adapter(base, tmp_path, contract, tokenizer))
    assert backend._label_rows is not None
    assert_equal_logits(backend)
    before = packed(backend, TEXTS)
    merged = backend.model.merge_and_unload() if quantization == "none" else None
    if merged is not None:
        after = packed(TransformersBackend(merged, tokenizer, contract, tmp_path), TEXTS)
        for ours, theirs in zip(after, before, strict=True):
            assert all(np.allclose(a, b, atol=1e-3) for a, b in zip(ours, theirs, strict=True))


def test_a_trained_output_layer_is_not_passed_over(contract, tokenizer, tmp_path):
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False)
    model = get_peft_model(random_model("Qwen3", tie_word_embeddings=False), lora)
    backend = TransformersBackend(model, tokenizer, contract, tmp_path)
    assert backend._label_rows is None
    assert_equal_logits(backend)


# --- attention ---


def test_files_that_ask_for_eager_attention_are_loaded_with_sdpa(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config | {"attn_implementation": "eager"}))
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert plain.config._attn_implementation == "eager"  # else this test tests nothing
    with Judge.from_pretrained(tmp_path) as judge, Judge.from_pretrained(folder) as usual:
        assert judge.backend.model.config._attn_implementation in ("sdpa", row_attention.NAME)
        assert_equal_logits(judge.backend)
        assert labels(judge) == labels(usual)
        judge.exact = True
        assert labels(judge) == labels(usual)


def test_a_model_with_eager_attention_is_refused(contract, tokenizer, tmp_path):
    model = random_model("Qwen3")
    model.set_attn_implementation("eager")
    with pytest.raises(ModelError, match=r'eager attention, which .* attn_implementation="sdpa"'):
        TransformersBackend(model, tokenizer, contract, tmp_path)


# --- options ---


def test_an_unknown_option_is_refused(folder):
    with pytest.raises(ModelError, match=r"no option d_type, threads; it has quantization, adapter, device, dtype"):  # fmt: skip
        Judge.from_pretrained(folder, threads=2, d_type="float32")
    with pytest.raises(ModelError, match="dtype is float32, bfloat16, float16 or auto, not 'f32'"):
        Judge.from_pretrained(folder, dtype="f32")


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_dtype_is_that_of_an_adapter_s_base(contract, tokenizer, tmp_path, quantization):
    base = Base("tiny", quantization=quantization)
    path = adapter(base, tmp_path, contract, tokenizer)
    given = {}
    for dtype in (None, "auto", "bfloat16", "float16"):
        with Judge.from_pretrained(path, dtype=dtype) as judge:
            embeddings = judge.backend.model.get_input_embeddings().weight
            assert str(embeddings.dtype) == f"torch.{dtype if dtype in ('bfloat16', 'float16') else 'float32'}"  # fmt: skip
            given[dtype] = packed(judge.backend, TEXTS)
    for half, bound in (("bfloat16", 0.5), ("float16", 0.1)):
        pairs = zip(given[half], given[None], strict=True)
        noise = max(np.abs(a - b).max() for x, y in pairs for a, b in zip(x, y, strict=True))
        assert 0 < noise < bound


def test_sixteen_bits_pack_as_one_row_at_a_time(folder):
    """The arithmetic of a GPU, on the CPU."""
    with Judge.from_pretrained(folder, dtype="bfloat16") as judge:
        together = labels(judge)
        judge.exact = True
        assert labels(judge) == together


def test_quantizations_are_whole_names():
    files = ["judge-BF16.gguf", "judge-F16.gguf", "judge-Q4_K_M.gguf", "README.md"]
    assert choose_gguf(files, "F16", "x") == "judge-F16.gguf"
    assert choose_gguf(files, "bf16", "x") == "judge-BF16.gguf"
    assert choose_gguf(files, None, "x") == "judge-Q4_K_M.gguf"
    assert choose_gguf([*files, "judge-Q4_0.gguf"], None, "x") == "judge-Q4_0.gguf"
    assert choose_gguf(files, None, "x", "BF16") == "judge-BF16.gguf"
    assert choose_gguf(files, "F16", "x", "BF16") == "judge-F16.gguf"
    assert choose_gguf(files, None, "x", "Q8_0") == "judge-Q4_K_M.gguf"  # which is not there
    for name in ("F16.gguf", "judge.F16.gguf", "judge_f16.gguf", "F16/F16.gguf"):
        assert choose_gguf(["BF16.gguf", "judge-BF16.gguf", name], "F16", "x") == name
    with pytest.raises(ModelError, match="has no F16 file; choose one"):
        choose_gguf(["judge-BF16.gguf"], "F16", "x")


# --- out of memory ---

LIMITED = """
import resource, sys
from slm_judge import Judge
judge = Judge.from_pretrained(sys.argv[1], tokens_per_pack=10**7)
messages = [f"{n} The parcel has not arrived. " * 10 for n in range(200)]
def label(texts):
    return [row.labels for row in judge.annotate(texts)]
print(label(messages[:3]))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 150 * 2**20,) * 2)
print(label(messages)[:3], judge.backend.tokens_per_pack)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's limits")
def test_where_memory_runs_out_packs_are_halved(folder):
    """Under a real limit of the address space."""
    command = [sys.executable, "-c", LIMITED, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    before, during = done.stdout.strip().splitlines()
    labels, tokens = during.rsplit(" ", 1)
    assert labels == before
    assert 100 < int(tokens) < 10**6
    assert f"{tokens} at most from here on" in done.stderr


# --- base.json ---


def test_base_settings_come_back(tmp_path):
    base = Base("me/base", "a" * 40, "main", "nf4", "bfloat16", "cuda")
    base.save(tmp_path)
    assert Base.load(tmp_path) == base
    old = {
        "base": "b",
        "revision": None,
        "quantization": "nf4",
        "dtype": "float32",
        "device": "cpu",
    }
    (tmp_path / "base.json").write_text(json.dumps(old))
    assert Base.load(tmp_path) == Base("b", quantization="nf4")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", r"base.json says what .* cannot be read. Copy it .* or train again.\n.*Invalid JSON"),
        ('{"base": "b", "dtype"', "Invalid JSON"),
        ("{}", "base: "),
        ('{"base": "b", "dtype": "int8"}', "dtype: Input should be 'float32'"),
        (None, "No such file"),
    ],
)
def test_a_damaged_base_file_is_a_sentence(tmp_path, text, complaint):
    if text is not None:
        (tmp_path / "base.json").write_text(text)
    with pytest.raises(ModelError, match=complaint):
        Base.load(tmp_path)


def test_what_is_no_repository_has_no_commit(hub, tmp_path):
    assert base_commit("tiny", None) is None
    assert base_commit(str(tmp_path), "main") is None
    with pytest.raises(ModelError, match="no repository me/nothing on the Hub"):
        base_commit("me/nothing", None)
    with pytest.raises(ModelError, match="is not the name of a Hub repository: Repo id must"):
        base_commit("not/a/repository", None)
    with pytest.raises(ModelError, match="is not the name of a Hub repository"):
        locate_base("not/a/repository", "0" * 40)


def test_a_base_that_is_gone_is_a_sentence(hub, contract, tokenizer, tmp_path):
    from dataclasses import replace

    base = Base("tiny")
    path = adapter(base, tmp_path, contract, tokenizer)
    replace(base, base="me/gone", revision="b" * 40).save(path)
    with pytest.raises(ModelError, match="no repository me/gone on the Hub"):
        Judge.from_pretrained(path)


@pytest.mark.parametrize("kind", ["transformers", "gguf"])
def test_the_rubric_in_other_words_is_read_once_too(run, kind):
    """What `expect` changes is the work: the answers are those of rows that share nothing."""
    path = run.merged if kind == "transformers" else run.gguf_file("Q8_0")
    with Judge.from_pretrained(path) as judge:
        backend = judge.backend
        reader = backend.reader_of(backend.contract.rubric.reversed())
        states = [{"text": text} for text in TEXTS[:4]]
        prompts, plain = reader.encode(states), backend.reader.encode(states)
        assert prompts[0].input_ids[: len(reader.prefix)] == reader.prefix != backend.reader.prefix
        whole, before = dict(backend.run(prompts)), dict(backend.run(plain))
        backend.expect(reader)
        shared = dict(backend.run(prompts))
        backend.expect(backend.reader)
        after = dict(backend.run(plain))
    for found, expected in ((shared, whole), (after, before)):
        for index, logits in expected.items():
            for one, other in zip(found[index], logits, strict=True):
                assert np.abs(one - other).max() < backend.near_tie


def test_rows_are_computed_twice_only_where_that_is_cheaper(run):
    """Long rows are never; no others are once every fourth of the first 64 had to be."""
    short, long = [f"Parcel {n}?" for n in range(150)], ["Where is it? " * 40]
    with Judge.from_pretrained(run.gguf_file("Q8_0"), exact=True) as judge:
        exact, judge.exact = dict(judge.logits(short + long)), False
        runs, plain = [], judge.backend.run

        def run_and_count(prompts, alone=False):
            runs.append((len(prompts), alone))
            return plain(prompts, alone)

        judge.backend.run = run_and_count
        assert judge.backend.fills(judge.encode([{"text": long[0]}])[0])
        for near_tie, expected in ((0, [(64, False), (86, False), (1, True)]),
                                   (1e9, [(64, False), (151, True)])):  # fmt: skip
            judge.backend.near_tie, runs[:] = near_tie, []
            found = dict(judge.logits(short + long))
            assert runs == expected
            alone = range(151) if near_tie else [150]
            for index in alone:
                for one, other in zip(found[index], exact[index], strict=True):
                    assert np.array_equal(one, other)


def test_a_rank_stabilised_adapter_loads(tmp_path):
    from peft import LoraConfig, get_peft_model

    from slm_judge.artefact.base import load_adapter

    config = LoraConfig(r=4, lora_alpha=8, use_rslora=True, target_modules=["q_proj"])
    get_peft_model(load_base(Base("tiny"), "cpu"), config).save_pretrained(tmp_path)
    model = load_adapter(load_base(Base("tiny"), "cpu"), tmp_path)
    scales = {m.scaling["default"] for m in model.modules() if hasattr(m, "lora_A")}
    assert scales == {8 / 4**0.5}


# --- devices ---


@pytest.mark.parametrize(
    ("asked", "there", "chosen"),
    [(None, ["cuda", "cpu"], "cuda"), ("auto", ["mps", "cpu"], "mps"), ("cpu", ["mps", "cpu"], "cpu"),
     ("mps", ["mps", "cpu"], "mps"), ("cuda:1", ["cuda", "cpu"], "cuda:1")],
)  # fmt: skip
def test_the_device_is_the_one_asked_for_or_the_fastest(asked, there, chosen):
    assert choose_device(asked, there) == chosen


@pytest.mark.parametrize(
    ("device", "bfloat16", "training", "answers"),
    [
        ("cuda", True, "bfloat16", {"bfloat16": "bfloat16", "float32": "float32"}),
        ("cuda:1", False, "float16", {"bfloat16": "float16", "float32": "float32"}),  # V100, T4
        ("mps", False, "float32", {"bfloat16": "float32", "float16": "float32"}),
        ("cpu", False, "float32", {"bfloat16": "float32", "float32": "float32"}),
    ],
)
def test_the_compute_type_is_one_that_the_device_has(device, bfloat16, training, answers):
    assert dtype_for_training("auto", device, bfloat16) == training
    assert dtype_for_training("float32", device, bfloat16) == "float32"
    assert {files: dtype_for_answers(device, files, bfloat16) for files in answers} == answers


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_float16_without_scaled_gradients_is_refused(device):
    with pytest.raises(ModelError, match="float16 needs a CUDA GPU"):
        dtype_for_training("float16", device, bfloat16=False)


def test_packs_are_sized_by_the_model_and_what_is_free():
    small, large = (SimpleNamespace(num_hidden_layers=28, hidden_size=n, intermediate_size=3 * n)
                    for n in (1024, 2048))  # fmt: skip
    sizes = [tokens_that_fit(gigabytes * 1e9, large) for gigabytes in (1, 6, 13, 60)]
    assert sizes == [512, 1024, 4096, 8192]
    assert tokens_that_fit(13e9, small) == 8192
    assert tokens_that_fit(12.9e9, large) == tokens_that_fit(13.1e9, large)  # as when resumed
    assert pack_budget("cpu", small) == 1024


MATMUL = getattr(torch.backends.mkldnn, "matmul", None)
settable = pytest.mark.skipif(MATMUL is None, reason="this PyTorch has no choice of products")


def test_products_on_a_cpu_are_exact_to_float32_whoever_computes_them():
    x = torch.full((300, 200), 1 + 2.0**-12)
    with full_width("cpu"):
        assert (torch.nn.functional.linear(x, torch.eye(200)) == x).all()
        assert (torch.eye(300) @ x == x).all()


@settable
def test_products_that_round_are_never_chosen(monkeypatch):
    """Only a CPU of AMD's with AVX512 is asked; what it says decides."""
    monkeypatch.setattr(device, "_made_by_amd", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    for keeps in (True, False):
        monkeypatch.setattr(device, "_keeps_float32", lambda _, keeps=keeps: keeps)
        assert device._found_wider.__wrapped__() == keeps
    monkeypatch.setattr(device, "_made_by_amd", lambda: False)
    assert not device._found_wider.__wrapped__()


@settable
@pytest.mark.parametrize(("name", "wider", "inside"), [
    ("cpu", True, "bf16"), ("cpu", False, None), ("cuda:0", True, None), ("mps", True, None),
])  # fmt: skip
def test_products_are_switched_where_that_is_wider_and_back(monkeypatch, name, wider, inside):
    before = MATMUL.fp32_precision
    monkeypatch.setattr(device, "_onednn_is_wider", lambda: wider)
    with suppress(ModelError), full_width(name):
        assert MATMUL.fp32_precision == (inside or before)
        raise ModelError
    assert MATMUL.fp32_precision == before


@settable
def test_within_wide_products_the_usual_ones_are_to_be_had(monkeypatch):
    before = MATMUL.fp32_precision
    monkeypatch.setattr(device, "_onednn_is_wider", lambda: True)
    with usual_width():
        assert MATMUL.fp32_precision == before
    with full_width("cpu"):
        with suppress(ModelError), usual_width():
            assert MATMUL.fp32_precision == before
            raise ModelError
        assert MATMUL.fp32_precision == "bf16"
        lifted = usual_width()
        lifted.__enter__()
    lifted.__exit__(None, None, None)  # nobody is within any more
    assert MATMUL.fp32_precision == before


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from Linux")
def test_packs_of_many_lengths_do_not_fill_the_memory():
    """oneDNN keeps what it has made for a shape: without a bound, half a GiB here."""
    work = """
import torch
from slm_judge.artefact.device import full_width
def mebibytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) / 256
layers = [torch.randn(n, 256) for n in (128, 256, 512, 640)]
with torch.inference_mode(), full_width("cpu"):
    torch.nn.functional.linear(torch.randn(900, 256), layers[0])
    before = mebibytes()
    for length in range(850, 1050):
        for layer in layers:
            torch.nn.functional.linear(torch.randn(length, 256), layer)
    print(mebibytes() - before)
"""
    grown = subprocess.run(
        [sys.executable, "-c", work], check=True, capture_output=True, text=True, timeout=300
    )
    assert float(grown.stdout) < 300


@settable
def test_the_last_of_several_threads_switches_back(monkeypatch):
    before = MATMUL.fp32_precision
    monkeypatch.setattr(device, "_onednn_is_wider", lambda: True)
    first, second = full_width("cpu"), full_width("cpu")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert MATMUL.fp32_precision == "bf16"
    second.__exit__(None, None, None)
    assert MATMUL.fp32_precision == before


def test_on_a_cpu_rows_attend_to_themselves_and_answer_as_by_the_mask(folder):
    with Judge.from_pretrained(folder, device="cpu", dtype="float32") as judge:
        backend, calls = judge.backend, row_attention._calls
        assert backend._by_rows
        assert backend.tokens_per_pack == 1024
        before = calls.count
        by_rows = dict(judge.logits(TEXTS))
        assert calls.count > before
        backend._by_rows, before = False, calls.count
        for index, by_mask in judge.logits(TEXTS):
            for one, other in zip(by_rows[index], by_mask, strict=True):
                assert abs(one - other).max() < backend.near_tie / 4
        assert calls.count == before


def test_a_model_that_does_not_hand_on_where_rows_are_goes_by_the_mask(folder):
    backend = TransformersBackend.load(folder, device="cpu", dtype="float32")
    model, forward = backend.model, backend.model.forward
    model.set_attn_implementation("sdpa")
    model.forward = lambda rows=None, **others: forward(**others)
    deaf = TransformersBackend(model, backend._tokenizer, backend.contract, folder)
    assert not deaf._by_rows
    assert model.config._attn_implementation == "sdpa"
    assert deaf.tokens_per_pack == 512


# --- passes of few sizes, as on a CUDA GPU ---


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])  # by rows, by the mask
def test_a_pass_that_is_filled_up_gives_the_same_answers(folder, dtype):
    backend = TransformersBackend.load(folder, device="cpu", dtype=dtype)
    assert backend._by_rows == (dtype == "float32")
    prompts = backend.reader.encode([{"text": text} for text in TEXTS])
    tokens, forward = [], backend._forward
    plain = dict(backend.run(prompts))
    backend._sizes = [128, 512]
    backend._forward = lambda packed, *rest: (
        tokens.append(packed.n_tokens) or forward(packed, *rest)
    )
    together, alone = dict(backend.run(prompts)), dict(backend.run(prompts, alone=True))
    assert tokens == [512] + [128] * len(prompts)
    for found in (together, alone):
        assert found.keys() == plain.keys()
        for index, logits in found.items():
            for one, other in zip(logits, plain[index], strict=True):
                assert np.abs(one - other).max() < backend.noise / 4


SIZES = [512, 1024, 2048, 4096, 8192, 16384]


@pytest.mark.parametrize(
    ("tokens", "same", "bounded", "kept"),
    [
        (1024, SIZES[:3], False, SIZES[:2]),
        (1024, [], False, []),
        (8192, SIZES[:4], False, SIZES[:4]),
        (8192, SIZES[2:5], False, SIZES[2:5]),
        (512, SIZES[2:3], False, SIZES[2:3]),  # small ones have other bits, and this one fits
        (512, SIZES[2:3], True, []),
        (10**7, SIZES, True, SIZES),
    ],
)
def test_near_ties_have_no_second_look_where_company_changes_no_bit(
    folder, monkeypatch, tokens, same, bounded, kept
):
    backend = TransformersBackend.load(folder, "cpu", "float32", tokens)
    asked = []
    monkeypatch.setattr(backend, "_same_bits", lambda sizes: asked.append(sizes) or same)
    backend._settle_sizes(bounded)
    assert asked == [[n for n in SIZES if n <= max(tokens, 2048)]]
    assert backend._sizes == kept
    assert backend.near_tie == (0 if kept else backend.noise)
    assert backend.tokens_per_pack == (kept[-1] if kept else tokens)
    longest = 3 * backend.tokens_per_pack  # a row by itself, filled up whatever the sizes are
    assert backend._filled(longest) == (4 * kept[-1] if kept else longest)


def test_a_bit_that_company_changes_is_noticed(folder, monkeypatch):
    """What counts is tried at loading: answers that move with rows, tokens, or what comes first."""
    backend, sizes = TransformersBackend.load(folder, "cpu", "float32"), SIZES[:5]
    for moved, same in (
        (lambda packed: 0, sizes),
        (lambda packed: 1e-6 * len(packed.lengths), [2048]),
        (lambda packed: 1e-6 * packed.input_ids[0, 0], []),
        (lambda packed: 1e-6 * (packed.n_tokens == 512), sizes[1:]),
        (lambda packed: 1e-6 * (packed.n_tokens <= 1536), sizes[2:]),
        (lambda packed: 1e-6 * (packed.n_tokens == 4096), sizes[:3]),
    ):

        def answer(packed, n_rows, *_, moved=moved):
            return [[np.full(3, 0.1 + moved(packed), np.float32)]] * n_rows

        monkeypatch.setattr(backend, "_forward", answer)
        assert backend._same_bits(sizes) == same
        assert backend._sizes == []


def test_sizes_of_passes_follow_the_memory_that_there_is(folder, monkeypatch):
    backend = TransformersBackend.load(folder, "cpu", "float32", 4096)
    tried, free = [], 2048

    def same_bits(sizes):
        tried.append(sizes[-1])
        if sizes[-1] > free:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return sizes

    monkeypatch.setattr(backend, "_same_bits", same_bits)
    with pytest.warns(UserWarning, match="Out of memory with 4096 tokens in a pass: 2048 at most"):
        backend._settle_sizes(bounded=False)
    assert (tried, backend._sizes, backend.near_tie) == ([4096, 2048], SIZES[:3], 0)

    prompts, forward = backend.reader.encode([{"text": text} for text in TEXTS]), backend._forward
    seen = []

    def short_of_memory(packed, *rest):
        seen.append(packed.n_tokens)
        if packed.n_tokens == 1024:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(packed, *rest)

    monkeypatch.setattr(backend, "_forward", short_of_memory)
    monkeypatch.setattr(backend, "_sizes", [1024])
    with pytest.warns(UserWarning, match="with 1024 tokens in a pass: 512 at most"):
        assert len(dict(backend.run(prompts))) == len(prompts)
    assert seen[0] == 1024
    assert (backend._sizes, backend.near_tie) == ([], backend.noise)
    monkeypatch.setattr(backend, "_sizes", [1024])
    monkeypatch.setattr(backend, "near_tie", 0.0)
    monkeypatch.setattr(backend, "tokens_per_pack", 100)
    (long,) = backend.reader.encode([{"text": "word " * 600}])
    with pytest.warns(UserWarning, match="with 1024 tokens in a pass"):
        ((_, found),) = backend.run([long])  # alone, and filled up, for which there is no room
    assert 600 < seen[-1] < 1024
    assert backend.tokens_per_pack == 100
    assert (backend._sizes, backend.near_tie) == ([], backend.noise)
    assert np.allclose(found[0], dict(backend.run([long], alone=True))[0][0], atol=1e-4)
    monkeypatch.setattr(backend, "tokens_per_pack", 512)
    free = 1024  # too little to try: the second look stays
    backend._settle_sizes(bounded=False)
    assert (backend._sizes, backend.tokens_per_pack, backend.near_tie) == ([], 512, backend.noise)


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"), False),
        (ValueError("out of range"), False),
    ],
)
def test_memory_that_ran_out_is_told_from_other_errors(error, is_one):
    assert out_of_memory(error) == is_one


def test_near_ties_get_their_second_look_once_memory_ran_out(folder, monkeypatch):
    with Judge.from_pretrained(folder, device="cpu", dtype="float32") as judge:
        backend, plain, runs = judge.backend, judge.backend.run, []

        def run(prompts, alone=False):
            runs.append((len(prompts), alone))
            for found in plain(prompts, alone):
                yield found
                backend.near_tie = 1e9

        backend.near_tie = 0.0
        monkeypatch.setattr(backend, "run", run)
        assert len(dict(judge.logits(TEXTS))) == len(TEXTS)
        assert [run for run in runs if run[0]] == [(len(TEXTS), False), (len(TEXTS) - 1, True)]


def test_experts_see_what_is_beside_a_row(folder, monkeypatch):
    backend = TransformersBackend.load(folder, "cpu", "float32", 2048)
    monkeypatch.setattr(backend, "_same_bits", lambda sizes: sizes)
    monkeypatch.setattr(backend.model.config, "num_local_experts", 8, raising=False)
    backend._settle_sizes(bounded=False)
    assert (backend._sizes, backend.near_tie) == ([], backend.noise)


# --- sliding windows ---


def test_a_prompt_is_no_longer_than_what_all_layers_see(contract, tokenizer, tmp_path):
    """The mask of a pack knows no windows: behind them, answers would not be the model's."""
    options = {"use_sliding_window": True, "max_window_layers": 1}
    model = random_model("Qwen3", sliding_window=250, **options)
    assert "sliding_attention" in model.config.layer_types
    backend = TransformersBackend(model, tokenizer, contract, tmp_path)
    assert backend.max_tokens == 250
    assert_equal_logits(backend)
    with pytest.raises(DataError, match=r"needs \d+ tokens, but there is room for 250"):
        Judge(backend).annotate(["word " * 300])
    narrow = random_model("Qwen3", sliding_window=8, **options)
    with pytest.raises(
        ModelError, match=r"layers attend to 8 tokens \(a sliding window\), of which"
    ):
        TransformersBackend(narrow, tokenizer, contract, tmp_path)


# --- compiled layers ---


@pytest.fixture
def uncompiled():
    """PyTorch keeps what it compiled for a function, whatever it was compiled for."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("uncompiled")
def test_compiled_layers_answer_as_others(folder):
    plain = TransformersBackend.load(folder, "cpu", "float32")
    prompts = plain.reader.encode([{"text": text} for text in TEXTS])
    wanted, parts = dict(plain.run(prompts)), (plain._tokenizer, plain.contract, folder)
    compiled = TransformersBackend(plain.model, *parts, compile=True)
    assert any(layer._compiled_call_impl for layer in plain.model.modules())
    before = row_attention._calls.count
    for found in (dict(compiled.run(prompts)), dict(compiled.run(prompts, alone=True))):
        for index, logits in found.items():
            for one, other in zip(logits, wanted[index], strict=True):
                assert np.abs(one - other).max() < compiled.noise / 4
    assert row_attention._calls.count > before


@pytest.mark.usefixtures("uncompiled")
def test_layers_that_cannot_be_compiled_are_told(folder, contract, tokenizer):
    no_compiler = {"cpp.cxx": ("/nowhere",), "force_disable_caches": True}
    with (
        torch._inductor.config.patch(no_compiler),
        pytest.raises(ModelError, match="compile=True: PyTorch cannot compile here: "),
    ):
        TransformersBackend(random_model("Qwen3"), tokenizer, contract, folder, compile=True)


def test_compile_is_for_a_gpu(folder, run):
    with pytest.raises(ModelError, match="compile=True gains nothing but on a CUDA GPU"):
        Judge.from_pretrained(folder, device="cpu", compile=True)
    with pytest.raises(ModelError, match="compile=True is for transformers"):
        Judge.from_pretrained(run.gguf_file("Q8_0"), compile=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused(folder):
    with pytest.raises(
        ModelError, match="cuda is asked for, but PyTorch finds no such device here"
    ):
        Judge.from_pretrained(folder, device="cuda")
    assert "cpu" in devices()


def test_bfloat16_answers_as_float32_where_it_is_no_tie(folder):
    with (
        Judge.from_pretrained(folder, dtype="bfloat16") as half,
        Judge.from_pretrained(folder, dtype="float32") as whole,
    ):
        reference = dict(whole.logits(TEXTS))
        assert max(gap(row) for rows in reference.values() for row in rows) > half.backend.near_tie
        for index, rows in half.logits(TEXTS):
            for ours, theirs in zip(rows, reference[index], strict=True):
                assert ours.argmax() == theirs.argmax() or gap(theirs) < half.backend.near_tie
