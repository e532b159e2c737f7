"""The table of methods: what each row promises, and that everything offered has one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jacli.options.config import from_options
from jacli.options.methods import CHAIN, METHOD_NAMES, METHODS, REFERENCE

MANY, FEW = {"n_in": 300, "n_out": 50}, {"n_in": 3, "n_out": 50}


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_every_name_may_be_asked_for(name):
    asked = from_options({"model": "m.pt", "inputs": "x.npy", "method": name})
    assert asked.method == name


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_known_by_its_name(name):
    assert METHODS[name].name == name != CHAIN


@pytest.mark.parametrize("sizes", [MANY, FEW], ids=["many inputs", "few inputs"])
@pytest.mark.parametrize("name", METHODS)
def test_passes_cover_every_vector_once(name, sizes):
    method = METHODS[name]
    vectors = method.vectors(**sizes)
    assert vectors == (sizes["n_in"] if method.by_columns else sizes["n_out"])
    assert method.passes(**sizes, chunk_size=1) == vectors
    assert method.passes(**sizes, chunk_size=vectors) == (vectors if method.single_vector else 1)
    assert method.passes(**sizes, chunk_size=7) == (vectors if method.single_vector else -(-vectors // 7))


@pytest.mark.parametrize("name", METHODS)
def test_what_needs_other_batch_sizes_is_refused_where_there_is_one_only(name):
    method = METHODS[name]
    assert method.refusal(fixed_batch=None) is None
    refused = method.refusal(fixed_batch=4)
    assert (refused is not None) == (method.repeats_batch or method.runs_program)
    assert refused is None or "4 only" in refused


def test_one_method_is_the_reference():
    assert [method for method in METHODS.values() if method.is_reference] == [REFERENCE]


def test_a_row_is_all_that_a_method_is():
    """A throw-away row has all that is derived from a row."""
    row = replace(METHODS["vmap"], name="of columns", by_columns=True)
    assert row.vectors(**FEW) == 3 and row.passes(**FEW, chunk_size=2) == 2
    assert row.needs_batching_rules and not row.runs_program and not row.is_plain
