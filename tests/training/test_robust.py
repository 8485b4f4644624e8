"""Runs that are killed, shared by processes, or go wrong; each in processes of its own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from slm_judge.run import Run
from tests.conftest import LIMIT, kill_until_done, small_recipe

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture
def recipe_file(tmp_path):
    """Writes a small recipe; `changes` are sections of it."""

    def write(name, **changes):
        raw = small_recipe(tmp_path / name).model_dump()
        for section, values in changes.items():
            raw[section] |= values
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(raw))
        return path, tmp_path / name

    return write


def command(*arguments):
    return [sys.executable, "-m", "slm_judge", *map(str, arguments)]


def slm_judge(*arguments, env=ENVIRONMENT):
    """The command to its end."""
    return subprocess.run(
        command(*arguments), env=env, capture_output=True, text=True, timeout=LIMIT
    )


def weights(folder: Path):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def facts(folder: Path):
    return json.loads((folder / "adapter" / "training.json").read_text())


# Everything that is drawn: votes, wordings, dropped tokens, the adapter's dropout.
DRAWN = {
    "training": {"epochs": 3, "targets": "sampled", "checkpoint_minutes": 0.002, "batch_size": 8},
    "augmentation": {"shuffle_options": "choice", "token_dropout": 0.1},
    "lora": {"dropout": 0.1},
}


def test_a_killed_run_resumes_to_the_same_weights(recipe_file):
    """SIGKILL at random moments, within epochs and while checkpoints are written."""
    whole, whole_folder = recipe_file("whole", **DRAWN)
    assert slm_judge("train", whole).returncode == 0
    killed, folder = recipe_file("killed", **DRAWN)
    log = folder.with_suffix(".log")

    def start():
        with log.open("w") as file:
            resumed = command("train", killed, "--resume")
            return subprocess.Popen(resumed, env=ENVIRONMENT, stdout=file, stderr=file)

    kills = kill_until_done(
        start, folder / "adapter", lambda: folder.glob("checkpoints/checkpoint-*"), 3,
        delay=1.5, poll=0.02, log=log,
    )  # fmt: skip
    assert kills == 3
    for name, tensor in weights(whole_folder).items():
        assert torch.equal(tensor, weights(folder)[name]), name
    assert (
        facts(folder)["validation"]["validation_alpha"]
        == (facts(whole_folder)["validation"]["validation_alpha"])
    )


def checkpoint(folder: Path, step: int) -> Path:
    """A checkpoint with what the trainer needs to go on."""
    place = folder / f"checkpoint-{step}"
    place.mkdir()
    (place / "trainer_state.json").write_text(f'{{"global_step": {step}}}')
    save_file({"weight": torch.ones(3)}, place / "adapter_model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"state": torch.ones(3)}, place / name)
    return place


def test_a_checkpoint_that_is_not_whole_is_passed_over(tmp_path):
    """Whichever of its files is missing, empty, cut off or changed."""
    from slm_judge.training.run_folder import last_checkpoint

    assert last_checkpoint(tmp_path) is None
    whole = checkpoint(tmp_path, 9)
    for copy in ("checkpoint-99 (copy)", "checkpoint-tmp"):
        shutil.copytree(whole, tmp_path / copy)
    (tmp_path / "checkpoint-9.tar.gz").touch()
    assert last_checkpoint(tmp_path) == str(whole)
    damages = {
        "missing": lambda path: path.unlink(),
        "empty": lambda path: path.write_bytes(b""),
        "cut off": lambda path: path.write_bytes(path.read_bytes()[:-5]),
    }
    step = 10
    for name in sorted(path.name for path in whole.iterdir()):
        for damage in damages.values():
            if name == "rng_state.pth" and damage is damages["missing"]:
                continue  # its name has the number of the process
            newest = checkpoint(tmp_path, step)
            damage(newest / name)
            notes = []
            assert last_checkpoint(tmp_path, notes) == str(whole), newest
            assert f"{newest} is passed over" in notes[0]
            assert name in notes[0]
            shutil.rmtree(newest)
    changed = checkpoint(tmp_path, step) / "optimizer.pt"
    middle = changed.read_bytes().rindex(torch.ones(3).numpy().tobytes())
    changed.write_bytes(changed.read_bytes()[:middle] + b"\1" + changed.read_bytes()[middle + 1 :])
    assert last_checkpoint(tmp_path) == str(whole)


def test_a_run_behind_a_link_is_overwritten_where_it_lies(tmp_path):
    from slm_judge.training.run_folder import claimed

    run, real = Run(tmp_path / "runs"), tmp_path / "large" / "demo"
    real.mkdir(parents=True)
    run.folder.symlink_to(real)
    for number in range(2):
        run.recipe_file.write_text(str(number))
        with pytest.raises(KeyboardInterrupt), claimed(run, overwrite=True):
            raise KeyboardInterrupt
        assert run.recipe_file.read_text() == str(number)  # given back
        with claimed(run, overwrite=True):
            assert not run.recipe_file.exists()
            run.adapter.mkdir()
    assert run.folder.is_symlink()
    assert [path.name for path in real.parent.iterdir()] == ["demo"]
    assert sorted(path.name for path in real.iterdir()) == ["adapter"]


def test_two_processes_train_as_one(recipe_file):
    """The batch is shared: each process takes half of it, and logs are written once."""
    one, one_folder = recipe_file("one", training={"epochs": 1})
    assert slm_judge("train", one).returncode == 0
    two, two_folder = recipe_file("two", training={"epochs": 1, "report_to": ["tensorboard"]})
    launch = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_machines", "1"),
        *("--num_processes", "2", "--mixed_precision", "no", "--dynamo_backend", "no"),
        *("--main_process_port", "0", "-m", "slm_judge", "train", str(two)),
    ]
    result = subprocess.run(launch, env=ENVIRONMENT, capture_output=True, text=True, timeout=LIMIT)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.count("adapter saved in") == 1
    assert len(list((two_folder / "logs").glob("events.out.tfevents.*"))) == 1
    single, shared = facts(one_folder), facts(two_folder)
    for key in ("train_loss", "eval_loss"):
        (a,), (b,) = ([row[key] for row in f["history"] if key in row] for f in (single, shared))
        assert b == pytest.approx(a, rel=1e-4), key
    for name, tensor in weights(one_folder).items():
        assert torch.allclose(tensor, weights(two_folder)[name], atol=1e-4), name


def test_logs_for_tensorboard_and_trackio(recipe_file, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    path, folder = recipe_file("logged", training={"report_to": ["tensorboard", "trackio"]})
    environment = ENVIRONMENT | {"TRACKIO_DIR": str(tmp_path / "trackio")}
    assert slm_judge("train", path, env=environment).returncode == 0
    events = EventAccumulator(str(folder / "logs"))
    events.Reload()
    assert {"train/loss", "eval/alpha", "eval/alpha_topic"} <= set(events.Tags()["scalars"])
    assert (tmp_path / "trackio" / "demo.db").exists()


def test_a_loss_that_is_no_number_stops_with_advice(recipe_file):
    path, folder = recipe_file("nan", training={"learning_rate": 1e30, "max_grad_norm": 1e30})
    result = slm_judge("train", path)
    message = " ".join(result.stderr.split())
    assert result.returncode == 2, message
    assert "Lower training.learning_rate (now 1e+30)" in message
    assert "Traceback" not in message
    assert not (folder / "adapter").exists()


def test_running_out_of_memory_names_the_settings(recipe_file):
    """Under a real limit of the address space."""
    path, _ = recipe_file("big", training={"tokens_per_pack": 10**7, "batch_size": 500},
                          data={"limit": 500})  # fmt: skip
    code = (
        "import resource, torch, sys; import slm_judge.training.train as t\n"
        "make = t.Learner.trainer\n"
        "def limited(self):\n"
        "    trainer = make(self)\n"
        "    used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "    resource.setrlimit(resource.RLIMIT_AS, (used + 700 * 2**20,) * 2)\n"
        "    return trainer\n"
        "t.Learner.trainer = limited\n"
        "from slm_judge.cli import main; main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, "train", path],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=LIMIT,
    )  # fmt: skip
    message = " ".join(result.stderr.split())
    assert result.returncode == 2, message[-2000:]
    assert "Out of memory. Lower training.tokens_per_pack (now 10000000)" in message
    assert "gradient_checkpointing: true" in message
