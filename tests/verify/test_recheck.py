"""Planted errors are found; right results are not blamed, also at a kink."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from jacli.network import Linearized, TensorNetwork, exact_arithmetic, frozen_twin
from jacli.verify import PlainPasses, StoredProducts, StoredSample, recheck, recheck_tolerance
from jacli.verify.recheck import N_NEARBY, N_PROBES, N_ROWS
from tests.cases import CASES, build
from tests.toy_models import Confident

SEEDS = range(12)
SHAPE = (3, 5, 4)


@pytest.fixture(autouse=True)
def exact():
    with exact_arithmetic():
        yield


def linearized(module: nn.Module, x: Tensor, case=None) -> Linearized:
    network = TensorNetwork.of_module(
        frozen_twin(module),
        select=case.select if case else None,
        copy_each_call=isinstance(getattr(module, "state", None), Tensor),
    )
    return Linearized(network, x, {})


plain = PlainPasses.at


def jacobian(linearization: Linearized, position: int) -> Tensor:
    """By plain reverse passes, in the linearisation's own dtype; (n_out, n_in)."""
    rows = []
    for row in range(linearization.n_out):
        cotangents = torch.zeros(linearization.batch, linearization.n_out, dtype=linearization.dtype)
        cotangents[:, row] = 1
        rows.append(linearization.tape().vjp(cotangents[None])[0, position])
    return torch.stack(rows)


def sample_of(dense: Tensor, outputs: Tensor, norms: Tensor | None = None, *, save: str = "full"):
    """What a file would hold; ``norms`` are those of ``dense`` unless given."""
    dense = dense.double()
    row_norms = torch.linalg.vector_norm(dense, dim=1)

    def products(index: Tensor, cotangents: Tensor) -> StoredProducts:
        return StoredProducts(dense[index], cotangents @ dense, row_norms)

    return StoredSample(
        outputs.flatten().double(),
        row_norms if norms is None else norms,
        products if save == "full" else None,
    )


def never():
    raise AssertionError("a right sample is not tried again")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_right_results_pass(name: str, dtype: torch.dtype) -> None:
    module, x, case = build(name, dtype)
    run = linearized(module, x, case)
    doubled = frozen_twin(module).double()
    reference = linearized(doubled, x.double(), case)
    tolerance = recheck_tolerance(*2 * [str(dtype).removeprefix("torch.")])
    for position in range(2):
        dense = jacobian(run, position)
        for save in ("full", "none"):
            stored = sample_of(dense, run.outputs[position], save=save)
            found = recheck(
                stored,
                reference,
                lambda p=position: [(PlainPasses.at(run), p)],
                position=position,
                tolerance=tolerance,
                seed=3,
            )
            assert not found.failed
            assert not found.near_kink
            assert found.error < tolerance / 10
            assert found.cross_sample == 0
            assert found.dtype == "float64"


def _wide() -> nn.Module:
    """23 outputs: rows are drawn and probes stand for the rest."""
    torch.manual_seed(5)
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(120, 23)).double()


@pytest.fixture(scope="module")
def honest() -> tuple[Linearized, Tensor, Tensor]:
    """A reference of two samples, its second sample's Jacobian, and its outputs."""
    with exact_arithmetic():
        torch.manual_seed(6)
        reference = linearized(_wide(), torch.randn(2, *SHAPE, dtype=torch.float64))
        return reference, jacobian(reference, 1), reference.outputs[1].clone()


TOLERANCE = 1e-4


def _scaled(pattern: Tensor, dense: Tensor) -> Tensor:
    """``dense`` plus ``pattern``, scaled to 10.5 tolerances of ``dense`` in the Frobenius norm."""
    return dense + pattern * (10.5 * TOLERANCE * dense.norm() / pattern.norm())


def _at(dense: Tensor, rows: object, columns: object, draw: torch.Generator) -> Tensor:
    pattern = torch.zeros_like(dense)
    pattern[rows, columns] = torch.randn(pattern[rows, columns].shape, generator=draw, dtype=dense.dtype)
    return pattern


def _row(draw: torch.Generator, dense: Tensor) -> int:
    return int(torch.randint(len(dense), (), generator=draw))


def _column(draw: torch.Generator, dense: Tensor) -> int:
    return int(torch.randint(dense.shape[1], (), generator=draw))


def _wrong_mask(draw: torch.Generator, dense: Tensor) -> Tensor:
    """The same network with one ReLU unit on that is off, or off that is on."""
    module = _wide()
    torch.manual_seed(6)
    x = torch.randn(2, *SHAPE, dtype=torch.float64)[1]
    before = module[0](x[None]).flatten()
    mask = (before > 0).double()
    unit = int(torch.randint(len(mask), (), generator=draw))
    mask[unit] = 1 - mask[unit]
    first = torch.autograd.functional.jacobian(
        lambda p: module[0](p.reshape(1, *SHAPE)).flatten(), x.flatten()
    )
    return (module[3].weight.detach() * mask) @ first


def _entry_becomes(value: float, draw: torch.Generator, dense: Tensor) -> Tensor:
    changed = dense.clone()
    changed[_row(draw, dense), _column(draw, dense)] = value
    return changed


def _two_rows_exchanged(draw: torch.Generator, dense: Tensor) -> Tensor:
    a, b = torch.randperm(len(dense), generator=draw)[:2].tolist()
    swapped = dense.clone()
    swapped[[a, b]] = dense[[b, a]]
    return swapped


PLANTED: dict[str, Callable[[torch.Generator, Tensor], Tensor]] = {
    "one row": lambda g, d: _scaled(_at(d, _row(g, d), slice(None), g), d),
    "one column": lambda g, d: _scaled(_at(d, slice(None), _column(g, d), g), d),
    "one entry": lambda g, d: _scaled(_at(d, _row(g, d), _column(g, d), g), d),
    "everywhere": lambda g, d: _scaled(_at(d, slice(None), slice(None), g), d),
    "two classes exchanged": _two_rows_exchanged,
    "height and width exchanged": lambda g, d: d.reshape(-1, *SHAPE).transpose(2, 3).reshape(d.shape),
    "channels last": lambda g, d: d.reshape(-1, *SHAPE).permute(0, 2, 3, 1).reshape(d.shape),
    "a wrong mask": _wrong_mask,
    "zeros": lambda g, d: torch.zeros_like(d),
    "a zero row": lambda g, d: d.index_fill(0, torch.tensor(_row(g, d)), 0),
    "NaN": partial(_entry_becomes, torch.nan),
    "infinity": partial(_entry_becomes, torch.inf),
    "scaled": lambda g, d: d * (1 + 20 * TOLERANCE),
    "the sign": lambda g, d: -d,
}


def found_in(honest, dense: Tensor, seed: int, *, outputs=None, norms=None, save: str = "full"):
    reference, _, true_outputs = honest
    stored = sample_of(dense, true_outputs if outputs is None else outputs, norms, save=save)
    return recheck(
        stored,
        reference,
        lambda: [(plain(reference), 1)],
        position=1,
        tolerance=TOLERANCE,
        seed=seed,
    )


@pytest.mark.parametrize("norms", ["of the wrong one", "of the right one"])
@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_error_is_found(honest, name: str, norms: str) -> None:
    dense = honest[1]
    assert len(dense) > N_ROWS + N_PROBES
    kept = torch.linalg.vector_norm(dense, dim=1) if norms == "of the right one" else None
    for seed in SEEDS:
        wrong = PLANTED[name](torch.Generator().manual_seed(seed), dense)
        found = found_in(honest, wrong, seed + 100, norms=kept)
        assert found.failed, seed
        assert not found.near_kink
        assert found.error > TOLERANCE


@pytest.mark.parametrize("name", ["one row", "one column", "one entry", "everywhere"])
def test_the_error_is_an_estimate_of_the_planted_one(honest, name: str) -> None:
    """The root of its mean square; a row that is drawn counts by its own size."""
    dense = honest[1]
    norms = torch.linalg.vector_norm(dense, dim=1)
    squares = []
    for seed in range(60):
        wrong = PLANTED[name](torch.Generator().manual_seed(seed), dense)
        squares.append(found_in(honest, wrong, seed, norms=norms).error ** 2)
    mean = (sum(squares) / len(squares)) ** 0.5 / (10.5 * TOLERANCE)
    assert 0.6 < mean < 2.5


def test_probes_alone_miss_no_row(honest) -> None:
    """200 drawings on the hardest pattern: a rank-one error of 10.5 tolerances in a row that is not drawn."""
    dense = honest[1]
    norms = torch.linalg.vector_norm(dense, dim=1)
    missed = 0
    for seed in range(200):
        drawn = torch.randperm(len(dense), generator=torch.Generator().manual_seed(seed))[:N_ROWS]
        row = next(r for r in range(len(dense)) if r not in drawn.tolist())
        wrong = _scaled(_at(dense, row, slice(None), torch.Generator().manual_seed(seed)), dense)
        missed += not found_in(honest, wrong, seed, norms=norms).failed
    assert missed == 0


def test_another_sample_s_jacobian_is_found(honest) -> None:
    reference = honest[0]
    other = jacobian(reference, 0)
    for seed in SEEDS:
        assert found_in(honest, other, seed).failed


@pytest.mark.parametrize("name", CASES)
def test_errors_are_found_in_every_case(name: str) -> None:
    module, x, case = build(name, torch.float64)
    reference = linearized(module, x, case)
    dense, outputs = jacobian(reference, 1), reference.outputs[1]
    for seed in SEEDS:
        draw = torch.Generator().manual_seed(seed)
        wrong = _scaled(_at(dense, _row(draw, dense), slice(None), draw), dense)
        found = recheck(
            sample_of(wrong, outputs),
            reference,
            lambda: [(plain(reference), 1)],
            position=1,
            tolerance=TOLERANCE,
            seed=seed,
        )
        assert found.failed


@pytest.mark.parametrize("save", ["full", "none"])
def test_outputs_and_norms_are_compared(honest, save: str) -> None:
    _, dense, outputs = honest
    norms = torch.linalg.vector_norm(dense, dim=1)
    for seed in SEEDS:
        draw = torch.Generator().manual_seed(seed)
        error = torch.randn(len(outputs), generator=draw, dtype=torch.float64)
        wrong = outputs + error * (10.5 * TOLERANCE * outputs.norm() / error.norm())
        found = found_in(honest, dense, seed, outputs=wrong, save=save)
        assert found.failed
        assert found.part == "outputs"
        found = found_in(honest, dense, seed, norms=norms * (1 + 20 * TOLERANCE), save=save)
        assert found.failed
        assert found.part == "class_norms"
    assert found_in(honest, dense, 0, norms=norms.index_fill(0, torch.tensor(2), torch.nan)).failed


def test_a_single_wrong_norm_beside_a_jacobian_is_found(honest) -> None:
    """All norms are compared with the stored Jacobian's own, whichever rows are drawn."""
    _, dense, _ = honest
    norms = torch.linalg.vector_norm(dense, dim=1)
    for row in range(len(norms)):
        wrong = norms.clone()
        wrong[row] += 10.5 * TOLERANCE * norms.norm()
        assert found_in(honest, dense, 0, norms=wrong).failed


class Tie(nn.Module):
    """A unit whose sum cancels: rounding noise in float32, on the other side in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.top = nn.Linear(40, 9), nn.Linear(9, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.top(torch.relu(self.first(x)))


def at_a_tie() -> tuple[Tie, Tensor]:
    """A float32 model and two samples; at the first, float32 and float64 disagree on a unit."""
    for seed in range(100):
        torch.manual_seed(seed)
        module, x = Tie(), torch.randn(2, 40)
        with torch.no_grad():
            module.first.bias -= module.first(x)[0]  # sums of rounding noise only
            single = module.first(x)[0] > 0
            double = frozen_twin(module).double().first(x.double())[0] > 0
        if (single != double).any() and single.any():  # at some unit, and the Jacobian is not zero
            return module, x
    raise AssertionError("no tie found")


def test_a_kink_is_no_error() -> None:
    module, x = at_a_tie()
    run = linearized(module, x)
    reference = linearized(frozen_twin(module).double(), x.double())
    dense, outputs = jacobian(run, 0), run.outputs[0]
    found = recheck(
        sample_of(dense, outputs),
        reference,
        lambda: [(plain(run), 0)],
        position=0,
        tolerance=1e-4,
        seed=0,
    )
    assert found.near_kink
    assert not found.failed
    assert found.error > 1e-3
    at_the_other = jacobian(run, 1)
    found = recheck(
        sample_of(at_the_other, run.outputs[1]), reference, never, position=1, tolerance=1e-4, seed=0
    )
    assert not found.near_kink
    assert not found.failed
    for seed in SEEDS:  # a kink excuses nothing else
        wrong = dense * (1 + 20 * 1e-4)
        found = recheck(
            sample_of(wrong, outputs),
            reference,
            lambda: [(plain(run), 0)],
            position=0,
            tolerance=1e-4,
            seed=seed,
        )
        assert found.failed
        assert not found.near_kink


class Mixing(nn.Module):
    def __init__(self, share: float) -> None:
        super().__init__()
        self.linear, self.share = nn.Linear(6, 5), share

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(torch.tanh(x) + self.share * x.sum(0))


@pytest.mark.parametrize("share", [1.0, 1e-4])
def test_samples_that_influence_one_another_are_found(share: float) -> None:
    reference = linearized(Mixing(share).double(), torch.randn(2, 6, dtype=torch.float64))
    dense = jacobian_alone(reference, 1)
    found = recheck(
        sample_of(dense, reference.outputs[1]),
        reference,
        lambda: [(plain(reference), 1)],
        position=1,
        tolerance=1e-4,
        seed=0,
    )
    assert found.error < 1e-12
    assert found.mixes
    assert found.failed
    assert found.cross_sample > share / 10


def jacobian_alone(linearization: Linearized, position: int) -> Tensor:
    rows = []
    for row in range(linearization.n_out):
        cotangents = torch.zeros(linearization.batch, linearization.n_out, dtype=linearization.dtype)
        cotangents[position, row] = 1
        rows.append(linearization.tape().vjp(cotangents[None])[0, position])
    return torch.stack(rows)


def test_infinite_slopes_in_both_agree() -> None:
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sqrt(x)

    x = torch.tensor([[1.0, 2, 0], [0, 0, 3]], dtype=torch.float64)
    reference = linearized(Root(), x)
    dense = jacobian(reference, 0)
    assert not torch.isfinite(dense).all()
    found = recheck(
        sample_of(dense, reference.outputs[0]), reference, never, position=0, tolerance=1e-9, seed=0
    )
    assert found.error == 0
    assert not found.failed  # infinite slopes of the other sample are no mixing
    found = recheck(
        sample_of(dense.nan_to_num(0, 0, 0), reference.outputs[0]),
        reference,
        lambda: [(plain(reference), 0)],
        position=0,
        tolerance=1e-9,
        seed=0,
    )
    assert found.failed


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_sizes_whose_squares_leave_the_range(size: float) -> None:
    module = _wide()
    with torch.no_grad():
        module[3].weight.mul_(size)
        module[3].bias.mul_(size)
    reference = linearized(module, torch.randn(2, *SHAPE, dtype=torch.float64))
    dense = jacobian(reference, 1)

    def found(wrong: Tensor):
        stored = sample_of(wrong, reference.outputs[1])
        return recheck(stored, reference, lambda: [(plain(reference), 1)], position=1, tolerance=1e-4, seed=0)

    assert not found(dense).failed
    assert found(dense * 1.01).failed


def test_tolerances() -> None:
    assert recheck_tolerance("float32", "float32") == recheck_tolerance("float32", "float64") == 1e-4
    assert recheck_tolerance("float64", "float64") == 1e-9
    assert recheck_tolerance("float64", "float32") == pytest.approx(1e-6, rel=0.01)
    assert recheck_tolerance("float32", "float16") == pytest.approx(1.1e-3)
    assert recheck_tolerance("float32", "float32", "tf32") == pytest.approx(1e-2, rel=0.02)
    assert recheck_tolerance("float64", "float16", "bf16") == pytest.approx(5.1e-2)


class Placed(nn.Module):
    """Smooth; what a row gives depends on its place in larger batches."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.linear, self.how = nn.Linear(6, 12), how

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.arange(len(x))[:, None]
        y = torch.tanh(self.linear(x))
        if len(x) > N_NEARBY and self.how == "outputs":
            y = y * (1 + rows % 2)
        if len(x) > N_NEARBY and self.how == "gradients":
            y = y + torch.where(rows % 2 == 1, y - y.detach(), 0.0)
        if len(x) > N_NEARBY and self.how == "at a kink of a neighbour":
            y = y + torch.relu(x.roll(1, 0)[:, :1])
        return y


@pytest.mark.parametrize("how", ["outputs", "gradients", "at a kink of a neighbour"])
def test_what_a_batch_does_to_a_sample_is_no_kink(how: str) -> None:
    """Plain passes in the run's own batch agree with the result; nothing jumps near the sample."""
    module, x = Placed(how), torch.randn(20, 6)
    run = linearized(module, x)
    reference = linearized(frozen_twin(module).double(), x[:2].double())
    assert recheck(
        sample_of(jacobian_alone(run, 0), run.outputs[0]), reference, lambda: [(plain(run), 0)],
        position=0, tolerance=1e-4, seed=0,
    ).failed == (how == "at a kink of a neighbour")  # fmt: skip
    found = recheck(
        sample_of(jacobian_alone(run, 1), run.outputs[1]),
        reference,
        lambda: [(plain(run), 1)],
        position=1,
        tolerance=1e-4,
        seed=0,
    )
    assert found.failed
    assert not found.near_kink


KINKS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "absolute value": torch.abs,
    "hard tanh": lambda y: nn.functional.hardtanh(y, -1, 0),
    "pool": lambda y: nn.functional.max_pool1d(torch.cat([y, 0 * y], 1).reshape(-1, 2, 9).mT, 2).squeeze(2),
    "maximum": lambda y: torch.maximum(y, 0 * y),
    "sort": lambda y: y.sort(1).values,
}


class Kinked(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first, self.top, self.kind = nn.Linear(40, 9), nn.Linear(9, 12), kind

    def forward(self, x: Tensor) -> Tensor:
        return self.top(KINKS[self.kind](self.first(x)))


@pytest.mark.parametrize("kind", KINKS)
def test_kinks_of_every_kind_are_seen(kind: str) -> None:
    """Sums of rounding noise at one unit (at two, for a sort): the derivative is another in float64."""
    kinks = 0
    for seed in range(60):
        torch.manual_seed(seed)
        module, x = Kinked(kind), torch.randn(2, 40)
        with torch.no_grad():
            before = module.first(x)[0]
            module.first.bias[4] -= before[4] - (before[5] if kind == "sort" else 0.0)
        run = linearized(module, x)
        reference = linearized(frozen_twin(module).double(), x.double())
        dense = jacobian(run, 0)
        options = {"position": 0, "tolerance": 1e-4, "seed": seed}
        found = recheck(sample_of(dense, run.outputs[0]), reference, lambda r=run: [(plain(r), 0)], **options)
        assert not found.failed
        kinks += found.near_kink
    assert kinks >= 5


def test_outputs_that_differ_are_excused_by_no_kink() -> None:
    module, x = at_a_tie()
    run = linearized(module, x)
    reference = linearized(frozen_twin(module).double(), x.double())

    class Shifted(PlainPasses):
        """The run's own passes, which agree with the shifted outputs too."""

        @property
        def outputs(self) -> Tensor:
            return run.outputs + 0.01

    stored = sample_of(jacobian(run, 0), run.outputs[0] + 0.01)
    found = recheck(stored, reference, lambda: [(Shifted.at(run), 0)], position=0, tolerance=1e-4, seed=0)
    assert found.failed
    assert not found.near_kink


CONFIDENT = [(60.0, False), (100.0, False), (200.0, False), (60.0, True)]


@pytest.mark.parametrize("scale, mixed", CONFIDENT)
def test_confident_softmaxes_are_right_in_float64(scale: float, mixed: bool) -> None:
    torch.manual_seed(0)
    reference = linearized(
        Confident(6, scale=scale, mixed=mixed).double(), torch.randn(12, 6, dtype=torch.float64)
    )
    small = 0
    for position in range(12):
        dense = jacobian(reference, position)
        stored = sample_of(dense, reference.outputs[position])
        small += float(dense.norm()) < 1e-9
        options = {"position": position, "tolerance": 1e-9, "seed": position}
        assert not recheck(stored, reference, lambda: [], **options).failed
        for row in range(0, 20, 7):  # one row that is wrong is found all the same
            wrong = dense.clone()
            wrong[row] += 1e-6 * dense.norm() / 6**0.5
            spoilt = sample_of(wrong, reference.outputs[position], torch.linalg.vector_norm(dense, dim=1))
            assert recheck(spoilt, reference, lambda: [], **options).failed
    assert small >= 2


@pytest.mark.parametrize("scale, mixed", [(40.0, False), (60.0, False)])
def test_what_float32_is_too_coarse_for_is_told_from_a_wrong_method(scale: float, mixed: bool) -> None:
    torch.manual_seed(0)
    module, x = Confident(6, scale=scale, mixed=mixed), torch.randn(24, 6)
    run, reference = linearized(module, x), linearized(frozen_twin(module).double(), x.double())
    coarse = 0
    for position in range(24):
        dense, outputs = jacobian(run, position), run.outputs[position]
        ours = partial(lambda at: [(PlainPasses.at(run), at)], position)
        options = {"position": position, "tolerance": 1e-4, "seed": position}
        found = recheck(sample_of(dense, outputs), reference, ours, **options)
        assert found.failed == found.rounding  # badly conditioned ones count as kinks
        coarse += found.failed
        spoilt = recheck(sample_of(1.5 * dense, outputs), reference, ours, **options)
        assert not found.failed or (spoilt.failed and not spoilt.rounding)
    assert coarse >= 2
