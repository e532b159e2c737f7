"""The planner on integers alone."""

import subprocess
import sys

import pytest

from jacli.config import RunConfig
from jacli.errors import UsageError
from jacli.plan import Shapes, candidates, make_plan

NOTHING_REFUSED = {"loop": None, "replicate": None, "vmap": None, "forward": None}


def shapes(**changes):
    image = {
        "n_samples": 100,
        "input_shape": (3, 224, 224),
        "output_shape": (1000,),
        "n_selected": 1000,
        "fixed_batch": None,
        "itemsize": 4,
    }
    return Shapes(**{**image, **changes})


def config(**options):
    return RunConfig("model.pt", "x.npy", **options)


def plan(method="loop", *, asked=None, passes=lambda *, n_in, n_out, chunk_size: n_out, **changes):
    return make_plan(method, "", shapes(**changes), asked or config(), passes)


def test_needs_no_torch():
    code = "import sys, jacli.plan, jacli.config; sys.exit('torch' in sys.modules or 'h5py' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_block_stays_within_its_bytes():
    assert plan().batch_size == 1  # 602 MB a sample: one at a time
    small = plan(input_shape=(1, 28, 28), output_shape=(10,), n_selected=10)
    assert small.batch_size == 64
    assert small.n_blocks == 2
    assert small.passes == 20


def test_sizes_asked_for_are_kept():
    asked = config(batch_size=7, chunk_size=5, method="vmap")
    found = plan("vmap", asked=asked, passes=lambda *, n_in, n_out, chunk_size: n_out // chunk_size)
    assert (found.batch_size, found.chunk_size, found.n_blocks, found.passes) == (7, 5, 15, 15 * 200)


def test_a_chunk_never_exceeds_what_there_is():
    assert plan("vmap", output_shape=(4,), n_selected=4, n_samples=2).chunk_size == 4
    assert plan("forward", input_shape=(2,)).chunk_size == 2


def test_a_fixed_batch_is_kept_and_another_refused():
    assert plan(fixed_batch=4).batch_size == 4
    with pytest.raises(UsageError, match="batches of 4 only"):
        plan(fixed_batch=4, asked=config(batch_size=8))


@pytest.mark.parametrize(
    ("asked", "count", "everything"),
    [("auto", 1000, True), ("all", 1000, True), ("none", 0, False), (10, 10, False), (5000, 1000, True)],
)
def test_how_many_singular_values(asked, count, everything):
    found = plan(asked=config(singular_values=asked))
    assert (found.singular_values, found.all_singular_values) == (count, everything)


def test_auto_leaves_out_the_singular_values_of_huge_matrices():
    huge = {"output_shape": (5000,), "n_selected": 5000}
    assert plan(**huge).singular_values == 0
    assert plan(**huge, asked=config(singular_values="all")).singular_values == 5000


@pytest.mark.parametrize(
    ("changes", "first"),
    [
        ({}, "loop"),
        ({"n_samples": 1}, "vmap"),
        ({"input_shape": (16,), "output_shape": (3, 64, 64), "n_selected": 12288}, "forward"),
    ],
)
def test_auto_order(changes, first):
    names = [name for name, _ in candidates(shapes(**changes), config(), NOTHING_REFUSED)]
    assert names[0] == first
    assert "loop" in names  # the one that always serves


def test_auto_passes_over_what_cannot_serve():
    refused = {**NOTHING_REFUSED, "vmap": "no rule"}
    assert "vmap" not in [name for name, _ in candidates(shapes(n_samples=1), config(), refused)]
    assert candidates(shapes(), config(method="vmap"), refused) == [("vmap", "asked for")]
