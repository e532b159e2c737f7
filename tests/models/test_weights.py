"""Which weights of a checkpoint, under which prefix, into which shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from jacli.errors import ModelError, UsageError
from jacli.models import load_model

from .networks import Net, prefixed, saved, write_arch


@pytest.fixture
def load(tmp_path: Path) -> Any:
    arch = write_arch(tmp_path)

    def load_saved(value: Any, **options: Any) -> Any:
        options.setdefault("arch", arch)
        return load_model(str(saved(value, tmp_path / "net.pt")), **options)

    return load_saved


OPTIMIZER = {"optimizer": {"state": {"w": torch.zeros(3)}}, "epoch": 7}


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "net", "network", "weights"])
def test_nested_weights_are_found(load: Any, key: str) -> None:
    net = Net()
    loaded = load({**OPTIMIZER, key: net.state_dict()})
    assert torch.equal(loaded.module.fc.weight, net.fc.weight)
    assert loaded.format == "checkpoint" and f"used weights '{key}'" in loaded.notes


def test_deeper_nesting(load: Any) -> None:
    assert "used weights 'run.model'" in load({"run": {"model": Net().state_dict()}, **OPTIMIZER}).notes


def test_several_sets_of_weights_are_listed_and_chosen_by_key(load: Any) -> None:
    generator, critic = Net(), Net()
    checkpoint = {"generator": generator.state_dict(), "critic": critic.state_dict(), **OPTIMIZER}
    with pytest.raises(ModelError, match=r"generator, critic"):
        load(checkpoint)
    chosen = load(checkpoint, weights_key="critic").module
    assert torch.equal(chosen.fc.weight, critic.fc.weight)
    with pytest.raises(ModelError, match="Its entries are: generator"):
        load(checkpoint, weights_key="nothing")


def test_averaged_weights(load: Any) -> None:
    raw, average = Net(), Net()
    both = {"state_dict": raw.state_dict(), "state_dict_ema": average.state_dict()}
    plain = load(both)
    assert torch.equal(plain.module.fc.weight, raw.fc.weight)
    assert plain.notes[0] == "used weights 'state_dict'; an EMA copy 'state_dict_ema' is there too (--ema)"
    assert torch.equal(load(both, ema=True).module.fc.weight, average.fc.weight)
    assert torch.equal(load(both, ema=False).module.fc.weight, raw.fc.weight)
    only = {"ema": {"shadow": average.state_dict()}}
    assert "averaged" in load(only).notes[0]
    with pytest.raises(ModelError, match="--no-ema"):
        load(only, ema=False)
    with pytest.raises(ModelError, match="--ema"):
        load(raw.state_dict(), ema=True)
    with pytest.raises(UsageError, match="exclude"):
        load(both, ema=True, weights_key="state_dict")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module.model."])
def test_wrappers_prefixes_are_removed(load: Any, prefix: str) -> None:
    net = Net()
    loaded = load(prefixed(prefix, net.state_dict()))
    assert torch.equal(loaded.module.fc.weight, net.fc.weight)
    assert f"removed the prefix '{prefix}' from 7 keys" in loaded.notes


def test_two_fitting_prefixes_are_ambiguous(load: Any) -> None:
    student = Net()
    both = {**prefixed("student.", student.state_dict()), **prefixed("teacher.", Net().state_dict())}
    with pytest.raises(ModelError, match=r"student\., teacher\."):
        load(both)
    loaded = load(both, strip_prefix="student.")
    assert torch.equal(loaded.module.fc.weight, student.fc.weight)
    assert "left aside 7 keys: teacher.*" in loaded.notes
    with pytest.raises(ModelError, match="no tensor below"):
        load(both, strip_prefix="pupil.")


@pytest.mark.parametrize("prefix", ["", "module."])
def test_old_files_without_batch_counters(load: Any, prefix: str) -> None:
    state = {k: v for k, v in Net().state_dict().items() if not k.endswith("num_batches_tracked")}
    assert load(prefixed(prefix, state)).module.bn.num_batches_tracked == 0


def test_weights_that_do_not_fit_say_where(load: Any) -> None:
    state = dict(Net(width=6).state_dict())
    del state["bn.bias"]
    state["extra"] = torch.zeros(1)
    with pytest.raises(ModelError) as caught:
        load(state)
    message = str(caught.value)
    assert "missing in the file: bn.bias" in message and "not in the architecture: extra" in message
    assert "fc.weight (file 6x3, architecture 2x3)" in message and "--arch-arg" in message
    assert load(Net(width=6).state_dict(), arch_args={"width": 6}).module.fc.out_features == 6


def test_number_of_classes_is_the_files(load: Any, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 9))
    loaded = load(prefixed("module.", net.state_dict()), arch=f"{tmp_path / 'arch.py'}:make_classifier")
    assert loaded.module[2].out_features == 9
    assert "num_classes=9 taken from the file" in loaded.notes


def test_no_weights_at_all(load: Any) -> None:
    with pytest.raises(ModelError, match="Its entries are: epoch"):
        load({"epoch": 3})


def test_shared_and_deep_structures_are_looked_through_once(load: Any) -> None:
    parts: dict[str, Any] = {f"part{n}": n for n in range(1000)}
    for _ in range(3):
        parts = {f"part{n}": parts for n in range(1000)}  # a thousand million paths, a thousand entries
    with pytest.raises(ModelError, match="holds no weights"):
        load(parts)
    inside: dict[str, Any] = {"state_dict": Net().state_dict()}
    inside["itself"] = inside
    with pytest.raises(ModelError, match="several sets"):
        load({"epoch": 3, "run": inside})


@pytest.mark.parametrize("legacy", [False, True])
def test_dots_in_names_do_not_change_which_entries_count(load: Any, tmp_path: Path, legacy: bool) -> None:
    path = saved(
        {"a.optimizer": {"w": torch.zeros(3)}, "b.model": Net().state_dict()},
        tmp_path / "n.pt",
        legacy=legacy,
    )
    assert load_model(str(path), arch=write_arch(tmp_path)).module.fc.out_features == 2
