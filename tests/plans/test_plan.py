"""The plan on integers alone: what is counted, what is smaller, what is said."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest

from jacli.errors import UsageError
from jacli.options.methods import METHODS
from jacli.plans.bracketing import Product, Pull, Push, Seed
from jacli.plans.factorization import Factorization, LinkPlan
from jacli.plans.plan import ChainPlan, Measured, Shapes, chain_plan, check_batch_size, whole_plan
from jacli.plans.request import Request


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


def plan(method="vmap", *, asked=None, batch_size=8, chunk_size=4, **changes):
    sizes = {"batch_size": batch_size, "chunk_size": chunk_size}
    return whole_plan(
        METHODS[method], "", shapes(**changes), asked or Request(singular_values="auto"), **sizes
    )


def chained(factorization, *, batch_size=8):
    return chain_plan(factorization, "", shapes(), Request(), batch_size=batch_size)


def test_the_columns_are_those_of_the_domain_and_that_is_the_inputs_unless_it_is_given():
    assert (shapes().domain_shape, shapes().n_in) == ((3, 224, 224), 3 * 224 * 224)
    layer = shapes(domain_shape=(5, 2))
    assert (layer.input_shape, layer.n_in, layer.sample_bytes) == ((3, 224, 224), 10, 10 * 1000 * 4)


def rows(first, last):
    return Seed(first, last, "reverse")


def columns(first, last):
    return Seed(first, last, "forward")


def factored_plan(tree, *, widths=(60, 5, 16, 7, 33), methods=("vmap",) * 4, reverse=4, forward=3):
    return Factorization(
        cuts=tuple(f"cut {i}" for i in range(1, len(widths) - 1)),
        widths=widths,
        split=tree.upper.first,
        tree=tree,
        links=tuple(LinkPlan(method, reverse, forward) for method in methods),
    )


def test_needs_no_torch():
    code = (
        "import sys, jacli.plans.plan, jacli.plans.search, jacli.plans.bracketing, jacli.options.config;"
        "sys.exit('torch' in sys.modules or 'h5py' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_shapes():
    image = shapes(n_selected=10)
    assert (image.n_in, image.n_out) == (3 * 224 * 224, 1000)
    assert image.sample_bytes == 3 * 224 * 224 * 10 * 4
    assert shapes(output_shape=()).n_out == 1  # a number a sample


@pytest.mark.parametrize(
    ("batch_size", "chunk_size", "n_batches", "a_batch"),
    [(8, 4, 13, 250), (7, 3, 15, 334), (100, 1000, 1, 1), (1, 1, 100, 1000)],
)
def test_blocks_and_passes_are_counted(batch_size, chunk_size, n_batches, a_batch):
    found = plan(batch_size=batch_size, chunk_size=chunk_size)
    assert (found.n_batches, found.passes) == (n_batches, n_batches * a_batch)


def test_passes_are_of_the_selected_outputs():
    assert plan(n_selected=10, chunk_size=5, batch_size=100).passes == 2


PASSES = {
    "rows and rows": (Product(rows(2, 4), rows(0, 2)), 9 + 4),  # 33 and 16 rows, four at a time
    "columns above": (Product(columns(2, 4), rows(0, 2)), 6 + 4),  # 16 columns, three at a time
    "columns below": (Product(rows(2, 4), columns(0, 2)), 9 + 20),
    "pulled": (Product(Pull(rows(3, 4), 1, 3), rows(0, 1)), 9 + 9 + 2),
    "pushed": (Product(Push(columns(1, 2), 2, 4), rows(0, 1)), 2 + 2 + 2),
    "columns that are pulled": (Product(Pull(columns(3, 4), 1, 3), rows(0, 1)), 3 + 9 + 2),
    "rows that are pushed": (Product(Push(rows(1, 2), 2, 4), rows(0, 1)), 4 + 2 + 2),
    "a product of products": (
        Product(Product(rows(3, 4), rows(2, 3)), Product(rows(1, 2), rows(0, 1))),
        9 + 2 + 4 + 2,
    ),
}


@pytest.mark.parametrize("name", PASSES)
def test_passes_of_a_bracketing(name):
    """Those of every part, batched ones counted once, for each block."""
    tree, a_batch = PASSES[name]
    found = chained(factored_plan(tree), batch_size=40)
    assert (found.n_batches, found.passes) == (3, 3 * a_batch)


def test_a_link_filled_in_by_single_passes_is_counted_so():
    """Its chunk says nothing, also where a matrix at hand is carried on through it."""
    tree = Product(Pull(rows(3, 4), 1, 3), rows(0, 1))
    factored = factored_plan(tree, methods=("loop", "loop", "vmap", "loop"))
    assert chained(factored, batch_size=100).passes == 33 + 33 + 5


def test_counts_follow_the_number_of_samples():
    found = plan().counted(shapes(n_samples=9))
    assert (found.n_batches, found.passes) == (2, 500)


def halves(found, **changes):
    """Sizes of the plan and all smaller ones, each of at most half the work in flight."""
    sizes = []
    while found is not None:
        chunks = (
            [(k.reverse_chunk, k.forward_chunk) for k in found.factorization.links]
            if isinstance(found, ChainPlan)
            else found.chunk_size
        )
        sizes.append((found.batch_size, chunks))
        assert found.n_batches == math.ceil(100 / found.batch_size)
        found = found.smaller(shapes(**changes))
    return sizes


def test_smaller_means_fewer_samples_then_fewer_vectors():
    assert halves(plan(batch_size=5, chunk_size=6)) == [(5, 6), (2, 6), (1, 6), (1, 3), (1, 1)]


def test_a_fixed_batch_is_not_halved():
    assert halves(plan(chunk_size=4, fixed_batch=8), fixed_batch=8) == [(8, 4), (8, 2), (8, 1)]


def test_single_passes_have_no_vectors_to_halve():
    found = plan("loop", batch_size=2, chunk_size=4)
    assert found.smaller(shapes()).batch_size == 1
    assert found.smaller(shapes()).smaller(shapes()) is None


def test_a_smaller_factored_plan_has_smaller_chunks_in_every_link():
    factored = factored_plan(
        Product(rows(1, 2), rows(0, 1)), widths=(9, 3, 7), methods=("vmap", "loop"), reverse=4, forward=3
    )
    found = chained(factored, batch_size=3)
    assert halves(found) == [
        (3, [(4, 3)] * 2),
        (1, [(4, 3)] * 2),
        (1, [(2, 1)] * 2),
        (1, [(1, 1)] * 2),
    ]


def test_a_factored_plan_of_single_vectors_has_nothing_smaller():
    """Else the same work is tried again and again where it did not fit."""
    factored = factored_plan(PASSES["pulled"][0], reverse=1, forward=1)
    found = chained(factored, batch_size=1)
    assert found.smaller(shapes()) is None


def test_a_smaller_plan_is_counted_anew():
    found = plan(batch_size=8, chunk_size=4)
    assert found.smaller(shapes()).passes == 25 * 250
    one = plan(batch_size=1, chunk_size=4)
    assert one.smaller(shapes()).passes == 100 * 500
    factored = chained(factored_plan(PASSES["rows and rows"][0]), batch_size=1)
    assert factored.smaller(shapes()).passes == 100 * (17 + 8)


def test_a_fixed_batch_is_kept_and_another_refused():
    for accepted in (None, 4):
        check_batch_size(shapes(fixed_batch=4), Request(batch_size=accepted))
    check_batch_size(shapes(), Request(batch_size=8))
    with pytest.raises(UsageError, match="batches of 4 only"):
        check_batch_size(shapes(fixed_batch=4), Request(batch_size=8))


@pytest.mark.parametrize(
    ("asked", "count", "everything"),
    [("auto", 1000, True), ("all", 1000, True), ("none", 0, False), (10, 10, False), (5000, 1000, True)],
)
def test_how_many_singular_values(asked, count, everything):
    found = plan(asked=Request(singular_values=asked))
    assert (found.singular_values, found.all_singular_values) == (count, everything)


def test_auto_leaves_out_the_singular_values_of_huge_matrices():
    huge = {"output_shape": (5000,), "n_selected": 5000}
    assert plan(**huge).singular_values == 0
    assert plan(**huge, asked=Request(singular_values="all")).singular_values == 5000
    assert plan(**huge, input_shape=(4096,)).singular_values == 4096


def test_seconds_of_a_batch():
    assert Measured("vmap", 8, 4, setup_seconds=1.0, vector_seconds=0.5).batch_seconds(10) == 6.0
    assert Measured("vmap", 8, 4, failure="no rule").batch_seconds(10) == math.inf


def test_json_has_no_infinities():
    """What failed has no seconds; the rest is as it was."""
    failed = Measured("vmap", 8, 4, failure="no rule").to_dict()
    assert failed == {
        "method": "vmap",
        "batch_size": 8,
        "chunk_size": 4,
        "bytes_held": 0,
        "failure": "no rule",
    }
    done = Measured("vmap", 8, 4, 1.0, 0.5, 7).to_dict()
    assert done == {
        "method": "vmap",
        "batch_size": 8,
        "chunk_size": 4,
        "setup_seconds": 1.0,
        "vector_seconds": 0.5,
        "bytes_held": 7,
    }
    found = replace(
        chained(factored_plan(PASSES["pulled"][0])),
        measured=(Measured("vmap", 8, 4, failure="no rule"),),
        notes=("not cut",),
    )
    values = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert Factorization.from_dict(values["factored"]) == found.factorization
    assert values["measured"] == [failed] and values["notes"] == ["not cut"]
    assert plan().to_dict()["factored"] is None


def test_a_factored_plan_tells_its_width_and_order():
    found = factored_plan(PASSES["pulled"][0])
    assert found.width == 5
    assert found.order == ("((reverse cut 3..output) pulled through cut 1..cut 3) x (reverse input..cut 1)")
