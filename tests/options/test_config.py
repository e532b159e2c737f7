"""Options: parsed from text, TOML and JSON alike; all wrong ones at once."""

import pytest

from jacli.errors import UsageError
from jacli.options.config import MissingError, from_options
from jacli.options.methods import AUTOGRAD_METHODS
from jacli.options.table import OPTIONS, RunConfig
from jacli.options.values import Classes

BASE = {"model": "m.pt", "inputs": "x.npy"}


def test_defaults():
    assert from_options(BASE) == RunConfig("m.pt", "x.npy")
    assert from_options({**BASE, "method": None}) == RunConfig("m.pt", "x.npy")


def test_all_wrong_options_are_named_at_once():
    with pytest.raises(UsageError) as caught:
        from_options({"model": "m.pt", "method": "fast", "batch_size": "0", "clases": "1", "of": "prob"})
    for words in (
        "--method fast",
        "--batch-size 0",
        "'clases'",
        "classes",
        "--of prob",
        "did you mean probs",
        "INPUTS",
    ):
        assert words in str(caught.value)


def test_a_missing_argument_is_named_beside_a_wrong_option_of_a_like_name():
    with pytest.raises(UsageError, match=r"--inputs-key '' is wrong(?s:.*)No INPUTS given") as caught:
        from_options({"model": "m.pt", "inputs_key": ""})
    assert [type(problem) for problem in caught.value.problems] == [UsageError, MissingError]


def test_one_wrong_option_keeps_its_remedy_beside_the_help():
    with pytest.raises(UsageError) as caught:
        from_options({**BASE, "save": "none", "compress": "gzip"})
    assert caught.value.hint == "Leave one of them out. `jacli compute --help` lists every option."


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("batch_size", "16", 16),
        ("batch_size", 16, 16),
        ("batch_size", "auto", None),
        ("classes", "0, 3,7", Classes("indices", (0, 3, 7))),
        ("classes", [0, 3], Classes("indices", (0, 3))),
        ("classes", "top:5", Classes("top", k=5)),
        ("singular_values", "10", 10),
        ("singular_values", "all", "all"),
        ("arg", ["sr=16000", "mode=fast", "mask=@m.npy"], {"sr": 16000, "mode": "fast", "mask": "@m.npy"}),
        ("arch_arg", {"width": 2}, {"width": 2}),
        ("arch_arg", ["flag=true", "size=(2, 3)"], {"flag": True, "size": (2, 3)}),
        ("select", 1, "1"),
        ("samples", [0, 7], "0,7"),
        ("device", "cuda:1", "cuda:1"),
        ("log_every", "0.5", 0.5),
    ],
)
def test_values(name, value, expected):
    assert getattr(from_options({**BASE, name: value}), name) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", "1.5"), ("batch_size", True), ("batch_size", -1), ("chunk_size", "many"),
        ("classes", "top:0"), ("classes", "1,1"), ("classes", "a"), ("classes", "-1"),
        ("device", "gpu"), ("dtype", "float16"), ("seed", "-1"), ("log_every", "0"), ("log_every", "nan"),
        ("precision", "fp16"), ("arg", 3), ("arg", True), ("arch_arg", 2.5), ("seed", str(2**64)),
        ("arg", ["16000"]), ("arg", ["1x=2"]), ("singular_values", "0"), ("overwrite", "yes"), ("out", ""),
    ],
)  # fmt: skip
def test_wrong_values(name, value):
    with pytest.raises(UsageError, match=r"must be|No "):
        from_options({**BASE, name: value})


@pytest.mark.parametrize(
    "options",
    [
        {"classes": "label"},
        {"save": "none", "compress": "gzip"},
        {"save": "none", "save_dtype": "float16"},
        {"method": "loop", "chunk_size": "4"},
        {"precision": "tf32", "device": "cpu"},
        {"precision": "tf32", "dtype": "float64"},
        *({"precision": "tf32", "method": name} for name in AUTOGRAD_METHODS),
        *({"precision": "bf16", "method": name} for name in AUTOGRAD_METHODS),
    ],
)
def test_contradictions(options):
    with pytest.raises(UsageError):
        from_options({**BASE, **options})


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "bf16", "dtype": "float64"},
        {"precision": "bf16", "device": "cpu", "method": "factored"},
        {"precision": "tf32", "device": "cuda", "dtype": "float32"},
        {"precision": "ieee", "device": "cpu", "method": "loop", "dtype": "float64"},
    ],
    ids=str,
)
def test_precisions_go_with_what_has_them(options):
    assert from_options({**BASE, **options}).precision == options["precision"]


def test_a_configuration_survives_json():
    config = from_options(
        {**BASE, "classes": "top:3", "arg": ["sr=16000"], "batch_size": "4", "singular_values": "2"}
    )
    assert from_options(config.to_dict()) == config


def test_every_option_has_a_parser():
    assert set(OPTIONS) == set(RunConfig("m", "x").to_dict())
