"""The cheapest bracketing against an enumeration of all of them, and trees carried out on matrices."""

import json
import math
import random
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

from jacli.plans.bracketing import (
    Link,
    Product,
    Pull,
    Push,
    Seed,
    cheapest,
    cost,
    describe,
    from_dict,
    to_dict,
)

EVERY_KIND = Push(Product(Pull(Seed(2, 3, "forward"), 1, 2), Seed(0, 1, "reverse")), 3, 5)

SIMPLICITY = {Seed: 0, Pull: 1, Push: 1, Product: 2}


def chain(*widths, reverse=1.0, forward=1.0):
    """Links between widths, input first; a price for all of them or one for each."""
    n = len(widths) - 1
    reverse = reverse if isinstance(reverse, list) else [reverse] * n
    forward = forward if isinstance(forward, list) else [forward] * n
    return [Link(*link) for link in zip(widths[:-1], widths[1:], reverse, forward, strict=True)]


def random_chain(seed):
    """Up to five links of widths 1 to 9; few distinct prices, so ties are common, some infinite."""
    rng = random.Random(seed)
    widths = [rng.randint(1, 9) for _ in range(rng.randint(2, 6))]
    prices = rng.choice([[1.0], [0.1, 0.3, 0.7], [rng.expovariate(1.0) for _ in range(10)]])
    reverse = [rng.choice(prices) for _ in widths[1:]]
    forward = [rng.choice([*prices, math.inf] if seed % 2 else prices) for _ in widths[1:]]
    return chain(*widths, reverse=reverse, forward=forward), rng.choice([0.0, 1e-9, 1e-2, 0.1, 1.0, 1e6])


def every_tree(first, last):
    """All bracketings of links [first, last), with no regard to cost."""
    yield Seed(first, last, "reverse")
    yield Seed(first, last, "forward")
    for cut in range(first + 1, last):
        yield from (Pull(upper, first, cut) for upper in every_tree(cut, last))
        yield from (Push(lower, cut, last) for lower in every_tree(first, cut))
        for upper in every_tree(cut, last):
            yield from (Product(upper, lower) for lower in every_tree(first, cut))


def priced_by_hand(tree, links, seconds_per_multiply):
    """Rows, columns and seconds of a tree, one vector through one link at a time."""

    def through(vectors, first, last, direction):
        return sum(vectors * getattr(links[i], f"{direction}_seconds") for i in range(first, last))

    if isinstance(tree, Seed):
        rows, columns = links[tree.last - 1].width_out, links[tree.first].width_in
        vectors = {"reverse": rows, "forward": columns}[tree.direction]
        return rows, columns, through(vectors, tree.first, tree.last, tree.direction)
    if isinstance(tree, Pull):
        rows, _, seconds = priced_by_hand(tree.upper, links, seconds_per_multiply)
        pulled = through(rows, tree.through_first, tree.through_last, "reverse")
        return rows, links[tree.through_first].width_in, seconds + pulled
    if isinstance(tree, Push):
        _, columns, seconds = priced_by_hand(tree.lower, links, seconds_per_multiply)
        pushed = through(columns, tree.through_first, tree.through_last, "forward")
        return links[tree.through_last - 1].width_out, columns, seconds + pushed
    rows, inner, above = priced_by_hand(tree.upper, links, seconds_per_multiply)
    _, columns, below = priced_by_hand(tree.lower, links, seconds_per_multiply)
    return rows, columns, above + below + rows * inner * columns * seconds_per_multiply


def carried_out(tree, matrices):
    """The matrix a tree leads to, by the primitives it names."""
    match tree:
        case Seed(first, last, "reverse"):
            value = np.eye(len(matrices[last - 1]), dtype=int)
            for matrix in reversed(matrices[first:last]):
                value = value @ matrix
        case Seed(first, last, "forward"):
            value = np.eye(matrices[first].shape[1], dtype=int)
            for matrix in matrices[first:last]:
                value = matrix @ value
        case Pull(upper, first, last):
            value = carried_out(upper, matrices)
            for matrix in reversed(matrices[first:last]):
                value = value @ matrix
        case Push(lower, first, last):
            value = carried_out(lower, matrices)
            for matrix in matrices[first:last]:
                value = matrix @ value
        case Product(upper, lower):
            value = carried_out(upper, matrices) @ carried_out(lower, matrices)
    return value


def test_needs_no_torch():
    code = "import sys, jacli.plans.bracketing; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("seeds", [range(start, start + 50) for start in range(0, 400, 50)], ids=str)
def test_is_the_cheapest_of_all_and_the_simplest_of_those(seeds):
    for seed in seeds:
        links, per_multiply = random_chain(seed)
        found = cheapest(links, seconds_per_multiply=per_multiply)
        every = [(priced_by_hand(t, links, per_multiply)[2], t) for t in every_tree(0, len(links))]
        least = min(seconds for seconds, _ in every)
        simplest = min(SIMPLICITY[type(t)] for seconds, t in every if seconds <= least * (1 + 1e-10))
        assert (found.first, found.last) == (0, len(links)), seed
        assert priced_by_hand(found, links, per_multiply)[2] == pytest.approx(least, rel=1e-9), seed
        assert SIMPLICITY[type(found)] == simplest, seed


def test_the_random_chains_ask_for_every_kind_at_every_length():
    kinds = set()
    for seed in range(400):
        links, per_multiply = random_chain(seed)
        kinds.add((len(links), type(cheapest(links, seconds_per_multiply=per_multiply))))
    several = {(n, kind) for n in range(2, 6) for kind in (Seed, Pull, Push, Product)}
    assert kinds == several | {(1, Seed)}


@pytest.mark.parametrize("seed", range(20))
def test_a_forced_split_takes_the_cheapest_factors(seed):
    links, per_multiply = random_chain(seed)
    for split in range(1, len(links)):
        found = cheapest(links, seconds_per_multiply=per_multiply, split=split)
        every = [t for t in every_tree(0, len(links)) if isinstance(t, Product) and t.lower.last == split]
        least = min(priced_by_hand(t, links, per_multiply)[2] for t in every)
        assert isinstance(found, Product)
        assert (found.lower.first, found.lower.last) == (0, split)
        assert (found.upper.first, found.upper.last) == (split, len(links))
        assert priced_by_hand(found, links, per_multiply)[2] == pytest.approx(least, rel=1e-9)


def test_the_cost_of_any_tree_is_the_sum_of_its_vectors_and_products():
    trees = list(every_tree(0, 4))
    assert len(trees) == 522  # t(n) = 2 + sum over cuts of t(k) t(n-k) + t(k) + t(n-k): 2, 10, 66, 522
    links = chain(3, 5, 2, 7, 4, reverse=[0.5, 3.0, 0.25, 11.0], forward=[2.0, 0.125, 13.0, 1.0])
    for tree in trees:
        expected = priced_by_hand(tree, links, 0.03125)[2]
        assert cost(tree, links, seconds_per_multiply=0.03125) == pytest.approx(expected, rel=1e-12)


def test_any_tree_leads_to_the_product_of_the_links():
    widths = [3, 5, 2, 7, 4]
    rng = np.random.default_rng(0)
    matrices = [rng.integers(-3, 4, size=(n_out, n_in)) for n_in, n_out in pairwise(widths)]
    jacobian = matrices[3] @ matrices[2] @ matrices[1] @ matrices[0]
    for tree in every_tree(0, 4):
        assert np.array_equal(carried_out(tree, matrices), jacobian), tree


def test_one_link_goes_by_its_smaller_side():
    narrowing, widening = chain(7, 3), chain(3, 7)
    assert cheapest(narrowing, seconds_per_multiply=1.0) == Seed(0, 1, "reverse")
    assert cheapest(widening, seconds_per_multiply=1.0) == Seed(0, 1, "forward")
    assert cost(Seed(0, 1, "reverse"), narrowing, seconds_per_multiply=1.0) == 3.0
    assert cost(Seed(0, 1, "forward"), narrowing, seconds_per_multiply=1.0) == 7.0


def test_an_autoencoder_goes_forward_above_its_waist_and_in_reverse_below():
    links = chain(784, 32, 784)
    tree = cheapest(links, seconds_per_multiply=1e-6)
    assert tree == Product(Seed(1, 2, "forward"), Seed(0, 1, "reverse"))
    assert cost(tree, links, seconds_per_multiply=1e-6) == pytest.approx(32 + 32 + 19.668992)


def test_dear_products_make_way_for_a_pull():
    links = chain(784, 32, 784)
    tree = cheapest(links, seconds_per_multiply=1e-4)  # the product: 1966.9 s; the whole in reverse: 1568 s
    assert tree == Pull(Seed(1, 2, "forward"), 0, 1)
    assert cost(tree, links, seconds_per_multiply=1e-4) == 32 + 784


def test_a_dear_upper_link_makes_way_for_a_push():
    links = chain(784, 32, 784, forward=[1.0, 0.5])
    tree = cheapest(links, seconds_per_multiply=1e-4)  # 32 in reverse, 784 forward; pulled it is 16 + 784
    assert tree == Push(Seed(0, 1, "reverse"), 1, 2)
    assert cost(tree, links, seconds_per_multiply=1e-4) == 32 + 392


def test_without_forward_mode_all_goes_in_reverse():
    links = chain(784, 32, 784, forward=math.inf)
    assert cheapest(links, seconds_per_multiply=1e-4) == Seed(0, 2, "reverse")
    assert cost(Seed(0, 2, "forward"), links, seconds_per_multiply=1e-4) == math.inf


def test_a_dear_middle_goes_forward_from_its_narrow_side():
    """1000 <- 512 <- 400 <- 10000: 400 tangents from the first cut on, 400 cotangents below it."""
    links = chain(10000, 400, 512, 1000, reverse=[0.1, 10.0, 0.1], forward=[0.1, 10.0, 0.1])
    tree = cheapest(links, seconds_per_multiply=1e-9)
    assert tree == Product(Seed(1, 3, "forward"), Seed(0, 1, "reverse"))
    assert cost(tree, links, seconds_per_multiply=1e-9) == pytest.approx(400 * 10.1 + 400 * 0.1 + 4.0)


def test_an_hourglass_never_meets_its_wide_middle():
    links = chain(784, 32, 784, 32, 784, forward=1.5)
    tree = cheapest(links, seconds_per_multiply=1e-6)
    assert tree == Product(Seed(3, 4, "forward"), Seed(0, 3, "reverse"))
    assert cost(tree, links, seconds_per_multiply=1e-6) == pytest.approx(32 * 1.5 + 32 * 3 + 19.668992)


def test_an_hourglass_may_be_forced_to_meet_there():
    links = chain(784, 32, 784, 32, 784, forward=1.5)
    tree = cheapest(links, seconds_per_multiply=1e-6, split=2)
    upper = Product(Seed(3, 4, "forward"), Seed(2, 3, "reverse"))
    lower = Product(Seed(1, 2, "forward"), Seed(0, 1, "reverse"))
    assert tree == Product(upper, lower)
    a_half = 32 * 1.5 + 32 + 19.668992
    assert cost(tree, links, seconds_per_multiply=1e-6) == pytest.approx(2 * a_half + 784**3 * 1e-6)


@pytest.mark.parametrize("seed", range(50))
def test_a_pass_is_not_cut_for_the_sake_of_rounding(seed):
    """``d (a + b)`` and ``d a + d b`` differ in the last bit, either way."""
    rng = random.Random(seed)
    seconds = [rng.random() for _ in range(5)]
    in_reverse = chain(9, 8, 9, 8, 9, 7, reverse=seconds, forward=math.inf)
    assert cheapest(in_reverse, seconds_per_multiply=1e6) == Seed(0, 5, "reverse")
    forward = chain(7, 9, 8, 9, 8, 9, reverse=1e3, forward=seconds)
    assert cheapest(forward, seconds_per_multiply=1e6) == Seed(0, 5, "forward")
    pulled = chain(9, 8, 9, 1, 9, 7, reverse=[*seconds[:3], 1e3, 1e3], forward=[1e3, 1e3, 1e3, 9.0, 9.0])
    assert cheapest(pulled, seconds_per_multiply=1e6) == Pull(Seed(3, 5, "forward"), 0, 3)


def test_equal_trees_are_told_apart_by_their_parts():
    """Four equal widths and prices: the seed; two waists: not three parts where two do."""
    assert cheapest(chain(3, 3, 3, 3), seconds_per_multiply=0.0) == Seed(0, 3, "reverse")
    links = chain(9, 2, 9, 2, 9)  # also ((reverse 1..3) pushed through 3..4) x (reverse 0..1)
    assert cheapest(links, seconds_per_multiply=1e-3) == Product(Seed(1, 4, "forward"), Seed(0, 1, "reverse"))


def test_a_pull_goes_before_an_equal_product():
    links = chain(3, 1, 4, 1, 2, reverse=[4.0, 4.0, 1.0, 2.0], forward=[2.0, 50.0, 1.0, 50.0])
    upper = Product(Seed(3, 4, "reverse"), Seed(1, 3, "reverse"))  # 4 + 5 + 2 s, pulled for 8 more
    equal = Product(Seed(3, 4, "reverse"), Seed(0, 3, "reverse"))  # 4 + 9 + 6 s, hence fewer parts
    assert cost(equal, links, seconds_per_multiply=1.0) == cost(
        Pull(upper, 0, 1), links, seconds_per_multiply=1.0
    )
    assert cheapest(links, seconds_per_multiply=1.0) == Pull(upper, 0, 1)


@pytest.mark.parametrize("split", [-1, 0, 2, 3])
def test_a_split_is_a_cut(split):
    with pytest.raises(ValueError, match=f"cut in 1..1, not {split}"):
        cheapest(chain(3, 4, 5), seconds_per_multiply=1.0, split=split)


def test_widths_must_meet():
    links = [Link(3, 4, 1.0, 1.0), Link(5, 6, 1.0, 1.0)]
    with pytest.raises(ValueError, match="cut 1 the link below has width 4 and the link above 5"):
        cheapest(links, seconds_per_multiply=1.0)
    with pytest.raises(ValueError, match="cut 1"):
        cost(Seed(0, 1, "reverse"), links, seconds_per_multiply=1.0)


@pytest.mark.parametrize(
    "wrong", [(0, 3, 1.0, 1.0), (3, 0, 1.0, 1.0), (3, 4, -1.0, 1.0), (3, 4, 1.0, math.nan)]
)
def test_a_link_has_widths_and_prices(wrong):
    with pytest.raises(ValueError, match="must be"):
        Link(*wrong)


def test_a_chain_has_links_and_a_price_of_products():
    with pytest.raises(ValueError, match="at least one link"):
        cheapest([], seconds_per_multiply=1.0)
    with pytest.raises(ValueError, match="seconds_per_multiply"):
        cheapest(chain(3, 4), seconds_per_multiply=math.nan)


def test_a_tree_must_fit_the_chain():
    with pytest.raises(ValueError, match="ends at link 3, the chain at 2"):
        cost(Seed(0, 3, "reverse"), chain(3, 4, 5), seconds_per_multiply=1.0)


def test_a_part_of_the_chain_has_a_cost_too():
    links = chain(3, 4, 5, reverse=[1.0, 10.0])
    assert cost(Seed(1, 2, "reverse"), links, seconds_per_multiply=1.0) == 50.0


@pytest.mark.parametrize(
    "build",
    [
        lambda: Product(Seed(2, 3, "reverse"), Seed(0, 1, "reverse")),
        lambda: Pull(Seed(2, 3, "reverse"), 0, 1),
        lambda: Push(Seed(0, 1, "reverse"), 2, 3),
    ],
)
def test_parts_must_meet(build):
    with pytest.raises(ValueError, match="begins at link 2, the lower one ends at 1"):
        build()


def test_describe_names_the_cuts():
    names = ["a", "b", "c", "d"]
    assert describe(Seed(0, 5, "reverse"), names) == "reverse input..output"
    two = Product(Seed(2, 5, "reverse"), Seed(0, 2, "forward"))
    assert describe(two, names) == "(reverse b..output) x (forward input..b)"
    pulled = "(forward b..c) pulled through a..b"
    assert describe(EVERY_KIND, names) == f"(({pulled}) x (reverse input..a)) pushed through c..output"
    with pytest.raises(ValueError, match="got 3 names"):
        describe(EVERY_KIND, names[:3])


def test_json_has_the_fields():
    assert to_dict(Push(Seed(0, 1, "reverse"), 1, 3)) == {
        "kind": "push",
        "lower": {"kind": "seed", "first": 0, "last": 1, "direction": "reverse"},
        "through_first": 1,
        "through_last": 3,
    }


@pytest.mark.parametrize("tree", [EVERY_KIND, *every_tree(0, 3)], ids=lambda tree: describe(tree, "abcd"))
def test_json_round_trip(tree):
    assert from_dict(json.loads(json.dumps(to_dict(tree)))) == tree


SEED = {"kind": "seed", "first": 0, "last": 1, "direction": "reverse"}
UPPER = {"kind": "seed", "first": 1, "last": 2, "direction": "forward"}
MALFORMED = {
    "null": None,
    "a list": [SEED],
    "a string": "seed",
    "empty": {},
    "no kind": {"first": 0, "last": 1, "direction": "reverse"},
    "unknown kind": {**SEED, "kind": "leaf"},
    "kind of another type": {**SEED, "kind": ["seed"]},
    "missing field": {"kind": "seed", "first": 0, "last": 1},
    "further field": {**SEED, "cost": 3.0},
    "unknown direction": {**SEED, "direction": "sideways"},
    "direction of another type": {**SEED, "direction": ["reverse"]},
    "float": {**SEED, "last": 1.0},
    "bool": {**SEED, "last": True},
    "string": {**SEED, "last": "1"},
    "negative": {**SEED, "first": -1},
    "empty span": {**SEED, "first": 1},
    "part is null": {"kind": "product", "upper": UPPER, "lower": None},
    "parts do not meet": {"kind": "product", "upper": SEED, "lower": UPPER},
    "malformed part": {"kind": "product", "upper": UPPER, "lower": {**SEED, "last": None}},
    "further field in a product": {"kind": "product", "upper": UPPER, "lower": SEED, "first": 0},
    "pull without a span": {"kind": "pull", "upper": UPPER},
    "pull of an empty span": {"kind": "pull", "upper": UPPER, "through_first": 1, "through_last": 1},
    "pull does not meet": {"kind": "pull", "upper": SEED, "through_first": 0, "through_last": 1},
    "pull of a lower part": {"kind": "pull", "lower": UPPER, "through_first": 0, "through_last": 1},
    "push of a float span": {"kind": "push", "lower": SEED, "through_first": 1.0, "through_last": 2},
    "push does not meet": {"kind": "push", "lower": UPPER, "through_first": 1, "through_last": 2},
}


@pytest.mark.parametrize("malformed", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_json_is_a_value_error(malformed):
    with pytest.raises(ValueError):
        from_dict(malformed)


def test_what_the_malformed_ones_are_made_of_is_well_formed():
    assert from_dict({"kind": "product", "upper": UPPER, "lower": SEED}) == Product(
        Seed(1, 2, "forward"), Seed(0, 1, "reverse")
    )
