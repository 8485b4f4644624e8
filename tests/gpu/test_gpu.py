"""What only a GPU can show: training there, and answers in 16 and 4 bits that are the CPU's."""

import pytest
import torch
from rich.console import Console

from slm_judge import Judge
from slm_judge.backends import row_attention
from slm_judge.data.item import load_split
from slm_judge.judge.answer import gap
from slm_judge.recipe import ExportConfig
from tests.conftest import small_recipe

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEVICE = "cuda"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that was trained and exported on the GPU, in 4 bits, as the recipes do."""
    from slm_judge.export.bnb import quantize_bnb
    from slm_judge.export.merge import merge
    from slm_judge.training.train import train

    folder = tmp_path_factory.mktemp("gpu") / "run"
    recipe = small_recipe(
        folder,
        training={"device": DEVICE, "epochs": 4},
        quantization="nf4",
        export=ExportConfig(dtype="float32"),
    )
    run = train(recipe)
    merge(run)
    quantize_bnb(run, Console(quiet=True))
    return run


@pytest.fixture(scope="module")
def rows(trained):
    return [item.state for item in load_split(trained.data, "train")]


def logits(path, rows, **options):
    with Judge.from_pretrained(path, **options) as judge:
        found = dict(judge.logits(rows))
        return [found[index] for index in range(len(rows))], judge.backend.noise


def assert_equal_labels(ours, reference, near_tie):
    """But where the reference itself is nearer to a tie than the engine's noise."""
    for given, wanted in zip(ours, reference, strict=True):
        for a, b in zip(given, wanted, strict=True):
            assert a.argmax() == b.argmax() or gap(b) < near_tie


def test_training_on_the_gpu(trained):
    from slm_judge.artefact.base import Base

    base = Base.load(trained.adapter)
    assert (base.device, base.dtype, base.quantization) == (DEVICE, "bfloat16", "nf4")
    with Judge.from_pretrained(trained.adapter) as judge:
        assert judge.backend.model.device.type == DEVICE
        assert judge.backend.noise == 0.5  # in bfloat16


@pytest.mark.parametrize(
    ("heads", "channels", "prefix", "cached", "dtype"),
    [
        ((16, 8), 128, 178, False, torch.bfloat16),  # as in training
        ((16, 8), 128, 362, True, torch.bfloat16),  # as in annotation
        ((9, 3), 64, 100, False, torch.float16),
        ((16, 8), 128, 0, False, torch.bfloat16),
    ],
)
def test_attention_by_rows_is_that_by_the_mask(heads, channels, prefix, cached, dtype):
    torch.manual_seed(0)
    lengths = [30, 5, 60, 1, 210, 77]
    total = prefix + sum(lengths)
    skip = prefix if cached else 0
    sizes = [(total, heads[0]), (total, heads[1]), (total, heads[1])]
    inputs = [torch.randn(*size, channels, device=DEVICE, dtype=dtype) for size in sizes]
    owner = torch.tensor([-1] * prefix + [r for r, n in enumerate(lengths) for _ in range(n)])
    mask = ((owner == -1) | (owner[:, None] == owner)).tril().to(DEVICE)
    rows, found = row_attention.Rows(prefix, lengths), []
    for by_rows in (True, False):
        given = [x.clone().requires_grad_(not cached) for x in inputs]
        if by_rows and cached:
            of_rubric, own = (given[1][:prefix], given[2][:prefix]), [x[prefix:] for x in given]
            output = row_attention._behind_rubric(*own, of_rubric, rows, channels**-0.5)
        elif by_rows:
            output = row_attention._GpuRowAttention.apply(*given, rows, channels**-0.5)
        else:
            output = torch.nn.functional.scaled_dot_product_attention(
                *(x.float().transpose(0, 1) for x in given), attn_mask=mask, enable_gqa=True
            ).transpose(0, 1)[skip:]
        grads = []
        if not cached:
            output.float().square().sum().backward()
            grads = [x.grad.float() for x in given]
        found.append([output.float(), *grads])
    for ours, wanted in zip(*found, strict=True):
        assert (ours - wanted).norm() < 0.01 * wanted.norm()  # 0.004 on an H200


def test_passes_need_no_mask(trained, rows):
    with Judge.from_pretrained(trained.merged, device=DEVICE, dtype="bfloat16") as judge:
        assert judge.backend._by_rows
        by_rows = dict(judge.logits(rows))
        judge.backend._by_rows = False
        judge.backend.model.set_attn_implementation("sdpa")
        judge.backend.expect(judge.backend.reader)  # forget the rubric's keys and values
        by_mask = dict(judge.logits(rows))
        assert_equal_labels([by_rows[i] for i in by_mask], [*by_mask.values()], 0.5)


def test_compiled_layers_answer_alike(trained, rows):
    with Judge.from_pretrained(trained.merged, device=DEVICE, dtype="bfloat16") as judge:
        plain, near_tie = dict(judge.logits(rows)), judge.backend.noise
    with Judge.from_pretrained(
        trained.merged, device=DEVICE, dtype="bfloat16", compile=True
    ) as judge:
        assert judge.backend._sizes
        compiled = dict(judge.logits(rows))
        assert_equal_labels([compiled[i] for i in plain], [*plain.values()], near_tie)
        judge.exact = True
        alone = dict(judge.logits(rows))
        for index, ours in compiled.items():
            for one, other in zip(ours, alone[index], strict=True):
                assert (one == other).all()


@pytest.mark.parametrize("kind", ["adapter", "merged", "bnb"])
def test_packs_equal_one_row_at_a_time(trained, rows, kind):
    with Judge.from_pretrained(getattr(trained, kind), device=DEVICE) as judge:
        together = judge.annotate(rows)
        judge.exact = True
        alone = judge.annotate(rows)
        assert [a.labels for a in together] == [a.labels for a in alone]
        if judge.backend._sizes:  # no bit depends on company
            assert [a.probabilities for a in together] == [a.probabilities for a in alone]
        assert [a.probabilities for a in judge.annotate(rows[::-1])][::-1] == [
            a.probabilities for a in alone
        ]  # --exact: to the last bit


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_labels_are_those_of_the_cpu(trained, rows, dtype):
    reference, _ = logits(trained.merged, rows, device="cpu", dtype="float32")
    ours, near_tie = logits(trained.merged, rows, device=DEVICE, dtype=dtype)
    assert_equal_labels(ours, reference, near_tie)


# The 4-bit values of an adapter's base are made when it is loaded, from 16 bits on a GPU.
@pytest.mark.parametrize(("kind", "dtype"), [("adapter", "bfloat16"), ("bnb", "float32")])
def test_four_bits_are_those_of_the_cpu(trained, rows, kind, dtype):
    path = getattr(trained, kind)
    reference, _ = logits(path, rows, device="cpu", dtype=dtype)
    ours, near_tie = logits(path, rows, device=DEVICE)
    assert_equal_labels(ours, reference, near_tie)


def test_label_rows_give_the_model_s_own_logits(trained, rows):
    with Judge.from_pretrained(trained.merged, device=DEVICE, dtype="float32") as judge:
        backend = judge.backend
        assert backend._label_rows is not None
        found = dict(judge.logits(rows[:20]))
        for index, prompt in enumerate(backend.reader.encode(rows[:20])):
            ids = torch.tensor([prompt.input_ids], device=DEVICE)
            with torch.inference_mode():
                keep = torch.tensor(prompt.slots, device=DEVICE)
                own = backend.model(input_ids=ids, logits_to_keep=keep, use_cache=False).logits[0]
            own = own[:, backend._label_ids].cpu().numpy()
            for ours, theirs in zip(found[index], own, strict=True):
                assert abs(ours - theirs[: len(ours)]).max() < 1e-2


def test_where_gpu_memory_runs_out_packs_are_halved(trained, rows):
    many = [{"text": f"{n} {row['text']} " * 8} for n in range(4) for row in rows]
    judge = Judge.from_pretrained(trained.merged, device=DEVICE, tokens_per_pack=10**7)
    free, _ = torch.cuda.mem_get_info()
    with judge:
        before = [row.labels for row in judge.annotate(rows[:4])]
        hog = torch.empty(int(free * 0.98) - 2**28, dtype=torch.uint8, device=DEVICE)
        with pytest.warns(UserWarning, match="at most from here on"):
            judge.annotate(many)
        del hog
        assert [row.labels for row in judge.annotate(rows[:4])] == before
