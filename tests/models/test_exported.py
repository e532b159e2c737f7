"""Archives of torch.export."""

from __future__ import annotations

import io
import json
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from jacli.errors import ModelError
from jacli.models import describe_model, load_model
from jacli.models.exported import _try_in_a_child
from jacli.network import frozen_twin

from .networks import Net


def export(path: Path, *, dynamic: bool) -> Path:
    batch = ({0: torch.export.Dim("batch")},) if dynamic else None
    program = torch.export.export(Net().eval(), (torch.randn(4, 3),), dynamic_shapes=batch)
    content = io.BytesIO()
    torch.export.save(program, content)
    path.write_bytes(content.getvalue())
    return path


@pytest.mark.parametrize("dynamic", [False, True])
def test_programs_load(tmp_path: Path, dynamic: bool) -> None:
    path = export(tmp_path / "program.bin", dynamic=dynamic)
    loaded = load_model(str(path))
    assert loaded.format == "torch_export"
    assert loaded.static_batch == (None if dynamic else 4)
    assert loaded.module(torch.randn(4, 3)).shape == (4, 2)
    assert not any(p.requires_grad for p in loaded.module.parameters())
    found = describe_model(path)
    assert found["dynamic_batch"] is dynamic and found["input_shapes"]["x"][1:] == [3]
    json.dumps(found)


class Resized(torch.nn.Module):
    """Sizes that are more than sums and products: rounded, floored, raised."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.nn.functional.interpolate(self.conv(x), scale_factor=1.7)
        return torch.nn.functional.adaptive_avg_pool2d(y, (3, 2)).flatten(1) * x.shape[2] ** 0.5


@pytest.fixture
def resized(tmp_path: Path) -> Path:
    sides = {axis: torch.export.Dim(f"side{axis}", min=20, max=99) for axis in (2, 3)}
    program = torch.export.export(
        Resized().eval(),
        (torch.randn(2, 3, 33, 35),),
        dynamic_shapes=({0: torch.export.Dim("batch"), **sides},),
    )
    content = io.BytesIO()
    torch.export.save(program, content)
    (tmp_path / "resized.pt2").write_bytes(content.getvalue())
    return tmp_path / "resized.pt2"


def test_sizes_that_are_rounded_are_read(resized: Path) -> None:
    module = load_model(str(resized)).module
    assert module(torch.randn(3, 3, 40, 21)).shape == (3, 24)


def test_sizes_that_take_too_long_are_refused(resized: Path) -> None:
    """A second of processor time is not enough to import torch, whatever the sizes."""
    with pytest.raises(ModelError, match="is busy with its sizes for more than 1 s"):
        _try_in_a_child(resized, cpu_seconds=1)


class Masked(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor, mask: torch.Tensor, scale: int = 2) -> torch.Tensor:
        return self.linear(x * mask) * scale


@pytest.mark.parametrize("by_name", [False, True])
def test_arguments_go_by_name_however_they_were_exported(tmp_path: Path, by_name: bool) -> None:
    model, x, mask = Masked(), torch.randn(4, 4), torch.rand(4, 4)
    given = ((), {"x": x, "mask": mask}) if by_name else ((x, mask), None)
    content = io.BytesIO()
    torch.export.save(torch.export.export(model, *given), content)
    (tmp_path / "masked.pt2").write_bytes(content.getvalue())
    module = load_model(str(tmp_path / "masked.pt2")).module
    torch.testing.assert_close(module(x, mask=mask), model(x, mask))
    torch.testing.assert_close(frozen_twin(module)(x, mask=mask), model(x, mask))
    with pytest.raises(TypeError, match="missing arguments"):
        module(x)
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        module(x, mask=mask, msk=mask)


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


def rewrite(path: Path, change: dict[str, Any]) -> None:
    """Write the archive again with members replaced (by name's end) or added."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for end, content in change.items():
        name = next((name for name in members if name.endswith(end)), end)
        members[name] = content(members[name]) if callable(content) else content
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def pickled(value: Any) -> bytes:
    content = io.BytesIO()
    torch.save(value, content)
    return content.getvalue()


def use_pickle(config: bytes) -> bytes:
    changed = json.loads(config)
    next(iter(changed["config"].values()))["use_pickle"] = True
    return json.dumps(changed).encode()


def opaque(config: bytes) -> bytes:
    return json.dumps(
        {"config": {"c": {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": False}}}
    ).encode()


def custom(config: bytes) -> bytes:
    return opaque(config).replace(b"opaque_obj", b"custom_obj")


def script_object(name: str) -> bytes:
    """As ``torch._C._pickle_save`` writes an object of this class."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        pickled_object = b"\x80\x02c__torch__.torch.classes." + name.encode() + b"\n)\x81N\x85b."
        archive.writestr("archive/data.pkl", pickled_object)
        archive.writestr("archive/version", b"3")
    return content.getvalue()


@pytest.mark.parametrize("name", ["_TorchScriptTesting\n_StackString", "cuda\nStream", "image\nReader"])
def test_objects_of_classes_in_cpp_are_refused(tmp_path: Path, name: str) -> None:
    path = export(tmp_path / "program.pt2", dynamic=True)
    constants = {"data/constants/model_constants_config.json": custom}
    rewrite(path, {**constants, "archive/data/constants/custom_obj_0": script_object(name)})
    for load in (load_model, describe_model):
        with pytest.raises(ModelError, match="is not known to compute only"):
            load(str(path))


def test_pickled_code_in_an_archive_is_refused(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    evil = pickled(Evil(marker))
    attacks: list[dict[str, Any]] = [
        {"data/sample_inputs/model.pt": evil},
        {"data/weights/model_weights_config.json": use_pickle, "data/weights/weight_0": evil},
        {
            "data/constants/model_constants_config.json": opaque,
            "data/constants/opaque_obj_0": b"cos\nsystem\n.",
        },
        {"program/data/aotinductor/model/model.so": b"\x7fELF"},
    ]
    for attack in attacks:
        path = export(tmp_path / "program.pt2", dynamic=True)
        rewrite(path, attack)
        for load in (load_model, describe_model):
            with pytest.raises(ModelError, match="--allow-pickle"):
                load(str(path))
    assert not marker.exists()


@pytest.mark.parametrize("member", ["models/a/b.json", "models/constants/b.json", "models/a/bxxxxx"])
def test_programs_in_other_places_are_refused(tmp_path: Path, member: str) -> None:
    """Torch would load them first, with a configuration that lies in a folder of its own."""
    marker = tmp_path / "marker"
    path = export(tmp_path / "program.pt2", dynamic=True)
    with zipfile.ZipFile(path) as archive:
        content = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    name = member[len("models/") : -len(".json")]
    called = f"__import__('os').system('touch {marker}')"
    expressions = re.sub(
        rb'"expr_str": ?"[^"]*"', f'"expr_str": "{called}"'.encode(), content["models/model.json"]
    )
    entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    added = {
        member: expressions if not member.endswith(".json") else content["models/model.json"],
        f"data/sample_inputs/{name}.pt": content["data/sample_inputs/model.pt"],
        f"data/weights/{name}_weights_config.json": content["data/weights/model_weights_config.json"],
        f"data/constants/{name}_constants_config.json": json.dumps({"config": {"c": entry}}).encode(),
        "data/constants/opaque_obj_0": f"cposix\nsystem\n(S'touch {marker}'\ntR.".encode(),
    }
    rewrite(path, {f"program/{name}": text for name, text in added.items()})
    for load in (load_model, describe_model):
        with pytest.raises(ModelError, match="in a place where torch writes none"):
            load(str(path))
    assert not marker.exists()


def test_pickled_code_in_the_older_layout_is_refused(tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / "old.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("version", "8.8")
        archive.writestr("serialized_exported_program.json", "{}")
        for name in ("state_dict", "constants", "example_inputs"):
            archive.writestr(f"serialized_{name}.pt", pickled(Evil(marker)))
    with pytest.raises(ModelError, match=r"serialized_state_dict\.pt"):
        load_model(str(path))
    assert not marker.exists()


def test_torch_export_alone_would_have_run_it(tmp_path: Path) -> None:
    """The attack is real: what is refused above runs where it is allowed."""
    marker = tmp_path / "marker"
    path = export(tmp_path / "program.pt2", dynamic=True)
    attack = {
        "data/weights/model_weights_config.json": use_pickle,
        "data/weights/weight_0": pickled(Evil(marker)),
    }
    rewrite(path, attack)
    with pytest.raises(ModelError):
        load_model(str(path), allow_pickle=True)  # a number in a weight's place
    assert marker.exists()


def test_the_environment_is_left_as_it_was(tmp_path: Path) -> None:
    before = dict(os.environ)
    load_model(str(export(tmp_path / "program.pt2", dynamic=True)))
    assert dict(os.environ) == before
