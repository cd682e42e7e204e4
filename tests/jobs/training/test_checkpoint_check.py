"""A checkpoint whose files are complete but wrong: it is damaged, whichever file it is, and never resumed from."""

import io
import json
import random
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from edgetune_jobs.store.folder_store import LocalFolderStore
from edgetune_jobs.store.store import DamagedObject
from edgetune_jobs.training.checkpoint_check import CheckpointCheck
from edgetune_jobs.training.checkpoints import StoreCheckpoints

STEP = 4
TOTAL = 10


def make_model() -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = torch.nn.Sequential(OrderedDict(q_proj=torch.nn.Linear(8, 8)))
        return get_peft_model(layers, LoraConfig(r=2, target_modules=["q_proj"]))


def write_checkpoint(folder: Path, step: int = STEP) -> Path:
    """The files of a checkpoint as the libraries write them."""
    model = make_model()
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    model(torch.ones(1, 8)).sum().backward()
    for _ in range(step):
        optimizer.step()
        scheduler.step()
    folder.mkdir(parents=True)
    save_file(get_peft_model_state_dict(model), folder / "adapter_model.safetensors")
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    torch.save(scheduler.state_dict(), folder / "scheduler.pt")
    generators = {"python": random.getstate(), "numpy": numpy.random.get_state(), "cpu": torch.random.get_rng_state()}
    torch.save(generators, folder / "rng_state.pth")
    write_state(folder, global_step=step)
    return folder


def write_state(folder: Path, **fields: Any) -> None:
    state = {"global_step": STEP, "epoch": 0.5, "max_steps": TOTAL, "log_history": [{"loss": 0.5, "step": 1}]}
    (folder / "trainer_state.json").write_text(json.dumps(state | fields))


def edited(name: str, edit: Callable[[Any], Any]) -> Callable[[Path], object]:
    """Rewrites a file of torch.save; `edit` changes its content, or returns another."""

    def write(folder: Path) -> None:
        content = torch.load(folder / name, weights_only=False)
        changed = edit(content)
        torch.save(content if changed is None else changed, folder / name)

    return write


def adapter(edit: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        tensors = load_file(folder / "adapter_model.safetensors")
        edit(tensors)
        save_file(tensors, folder / "adapter_model.safetensors")

    return write


def set_first(value: torch.Tensor) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda tensors: tensors.update({sorted(tensors)[0]: value})


def compressed(folder: Path) -> None:
    """The same content, compressed: a zip bomb is made this way."""
    path = folder / "optimizer.pt"
    with (
        zipfile.ZipFile(io.BytesIO(path.read_bytes())) as stored,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out,
    ):
        for entry in stored.infolist():
            out.writestr(entry.filename, stored.read(entry))


def first_moment(state: Any, value: torch.Tensor) -> None:
    state["state"][0]["exp_avg"] = value


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "step": (lambda folder: write_state(folder, global_step=10**9), "trainer_state.json is of step 1000000000 instead"),
    "no step": (lambda folder: write_state(folder, global_step="4"), 'trainer_state.json is of step "4" instead of 4'),
    "state": (lambda folder: (folder / "trainer_state.json").write_text("[]"), "trainer_state.json is of step null"),
    "not JSON": (lambda folder: (folder / "trainer_state.json").write_text("{"), "trainer_state.json is invalid JSON"),
    "NaN": (lambda folder: write_state(folder, epoch=float("nan")), "trainer_state.json has no epoch"),
    "log": (lambda folder: write_state(folder, log_history=["x"]), "trainer_state.json has a log_history"),
    "field": (lambda folder: write_state(folder, surplus=1), "trainer_state.json cannot be read: "),
    "no optimizer": (lambda folder: (folder / "optimizer.pt").unlink(), "it has no optimizer.pt"),
    "optimizer": (lambda folder: (folder / "optimizer.pt").write_bytes(b"x" * 99), "optimizer.pt cannot be read: "),
    "pickle": (lambda folder: torch.save(Path("x"), folder / "optimizer.pt"), "optimizer.pt cannot be read: "),
    "compressed": (compressed, "optimizer.pt is compressed, which torch.save never does"),
    "moments": (
        edited("optimizer.pt", lambda state: first_moment(state, torch.zeros(3))),
        "optimizer.pt has exp_avg of other sizes than the adapter",
    ),
    "infinite moments": (
        edited("optimizer.pt", lambda state: first_moment(state, torch.full((2, 8), float("inf")))),
        "optimizer.pt has values that are not finite",
    ),
    "expanded": (
        edited("optimizer.pt", lambda state: state["state"][0].update(surplus=torch.zeros(1).expand(2**40))),
        "optimizer.pt has a tensor that is larger than its content",
    ),
    "parameters": (
        edited("optimizer.pt", lambda state: state["param_groups"].clear()),
        "optimizer.pt has the state of 0",
    ),
    "scheduler": (lambda folder: (folder / "scheduler.pt").write_bytes(b""), "scheduler.pt cannot be read: "),
    "scheduled step": (
        edited("scheduler.pt", lambda state: state.update(last_epoch=10**9)),
        "scheduler.pt is of step 1000000000",
    ),
    "rates": (edited("scheduler.pt", lambda state: state.update(base_lrs=["x"])), "scheduler.pt has learning rates"),
    "random": (edited("rng_state.pth", lambda _: {"python": (3, (1,), None)}), "rng_state.pth cannot be read: "),
    "shape": (adapter(set_first(torch.zeros(3, 8))), "adapter_model.safetensors has "),
    "infinite": (adapter(set_first(torch.full((2, 8), float("nan")))), "adapter_model.safetensors has values that are"),
    "surplus": (
        adapter(lambda tensors: tensors.update(x=torch.zeros(1))),
        "adapter_model.safetensors has x with shape",
    ),
    "weights": (
        lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"x"),
        "adapter_model.safetensors is not a valid safetensors file",
    ),
    "scaler": (
        lambda folder: torch.save({"scale": float("inf")}, folder / "scaler.pt"),
        "scaler.pt has values that are not finite",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_within_any_file_is_found(tmp_path: Path, damage: str) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint")
    apply, message = DAMAGE[damage]
    apply(folder)

    with pytest.raises(DamagedObject) as found:
        CheckpointCheck(make_model(), TOTAL)(folder, STEP)

    assert str(found.value).startswith(message)


def test_an_undamaged_checkpoint_passes_and_leaves_the_random_numbers_as_they_are(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint")
    before = generators()

    CheckpointCheck(make_model(), TOTAL)(folder, STEP)

    assert generators() == before


def test_the_gradient_norm_of_a_step_that_fp16_skipped_is_no_damage(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint")
    norms = (float("inf"), float("nan"))
    write_state(folder, log_history=[{"loss": 0.5, "grad_norm": norm, "step": 1} for norm in norms])

    CheckpointCheck(make_model(), TOTAL)(folder, STEP)


def generators() -> list[object]:
    return [random.getstate(), repr(numpy.random.get_state()), torch.random.get_rng_state().tolist()]


def test_a_step_after_the_last_one_is_damage(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint")

    with pytest.raises(DamagedObject, match=r"is of step 4, but the training has only 3 steps"):
        CheckpointCheck(make_model(), 3)(folder, STEP)


def test_the_checkpoint_before_a_damaged_one_is_restored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = StoreCheckpoints(LocalFolderStore((tmp_path / "store").as_uri()), "d" * 64, keep=2)
    checkpoints.save(2, write_checkpoint(tmp_path / "2", 2))
    damaged = write_checkpoint(tmp_path / "4")
    (damaged / "optimizer.pt").write_bytes(b"x")
    checkpoints.save(4, damaged)

    assert checkpoints.restore_latest(tmp_path / "restored", CheckpointCheck(make_model(), TOTAL)) == 2
    assert "cannot restore checkpoint 4, trying the one before it: optimizer.pt cannot be read" in caplog.text
    assert checkpoints.restore_latest(tmp_path / "again") == 2, "the damaged one is deleted"
