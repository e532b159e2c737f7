"""One workload: every contestant in turn, round after round, and every result against float64.

A trial on a part of the work finds each peer's best chunk size and foretells its time.  What would take far
longer than the best peer is not run in full; its foretold time is marked ``~`` and never wins.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

import jacli
from benchmarks.peers import Function, Peer, Runner, as_matrices, part_of, reference
from benchmarks.workloads import Sizes
from jacli.device.memory import free_memory, release_cached_memory
from jacli.errors import JacliError

KINK = 1e-4
"""A larger relative error is no rounding: a ReLU or a pool decided otherwise than in float64."""

EXACT = "ieee"
"""The precision that peers compute in; the others round on purpose, so that they have no kinks to count."""

_TRIAL = {"samples": 8, "outputs": 16, "inputs": 16}
"""What a trial runs, or one chunk where that is more."""

_HOPELESS_TRIAL, _HOPELESS = 10.0, 3.0
"""Times the best peer: foretold, not run in full; measured, not repeated."""

_LONG_SECONDS, _LONG_RUNS = 5.0, 2
"""Longer runs are done twice only; everything as one chunk is tried where smaller chunks foretell less."""


@dataclass
class Contestant:
    """What one way took.

    ``share`` is the part of the work that was run: below 1, ``seconds`` are scaled to the whole.
    ``error`` is the median over the samples, ``kinks`` the number of samples above `KINK`.
    ``beside_exact`` is the same median against jacli's own `EXACT` result, which has the same kinks;
    it and ``first_call`` are jacli's only.
    """

    name: str
    matrices: Callable[[Tensor], Tensor] = field(repr=False)
    precision: str = EXACT
    variant: str = ""
    seconds: list[float] = field(default_factory=list)
    share: float = 1.0
    error: float | None = None
    kinks: int | None = None
    beside_exact: float | None = None
    first_call: float | None = None
    note: str = ""
    prepare: Callable[[], Runner] | None = field(default=None, repr=False)
    run: Runner | None = field(default=None, repr=False)

    @property
    def best(self) -> float:
        """The fastest run in seconds; infinite if there is none."""
        return min(self.seconds, default=float("inf"))

    @property
    def measured(self) -> bool:
        """Whether the whole work was run."""
        return bool(self.seconds) and self.share == 1.0

    def say(self, note: str) -> None:
        """Add to the note, once."""
        if note and note not in self.note:
            self.note = f"{self.note}; {note}" if self.note else note

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "name": self.name,
            "variant": self.variant,
            "seconds": self.seconds,
            "min": min(self.seconds) if self.seconds else None,
            "median": statistics.median(self.seconds) if self.seconds else None,
            "estimated": bool(self.seconds) and self.share < 1.0,
            "share": self.share,
            "error": self.error,
            "kinks": self.kinks,
            "beside_exact": self.beside_exact,
            "first_call": self.first_call,
            "note": self.note,
        }


class Contest:
    """One workload's contestants on one device.

    Args:
        model: Frozen, in eval mode.
        x: ``(batch, *input)``.
        sizes: Of ``model`` at ``x``.
        rounds: How often each contestant runs, if it is neither long nor hopeless.
        budget: Seconds after jacli's first calls; beyond, no trial and no round but the first is started.
        precisions: Of jacli's passes; each is a contestant.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        sizes: Sizes,
        *,
        rounds: int,
        budget: float,
        precisions: Sequence[str] = (EXACT,),
    ) -> None:
        self.model, self.x, self.sizes, self.rounds = model, x, sizes, rounds
        self.reference = reference(model, x)
        self.budget, self.deadline = budget, float("inf")
        self.jacli = {precision: self._of_jacli(precision) for precision in precisions}
        self.peers: list[Contestant] = []
        self._exact: Tensor | None = None

    def _of_jacli(self, precision: str) -> Contestant:
        """With its own copy of the model: nothing that is kept of one precision serves another."""
        model, x, sizes = copy.deepcopy(self.model), self.x, self.sizes

        def run() -> Tensor:
            return jacli.jacobian(model, x, precision=precision)

        name = "jacli" if precision == EXACT else f"jacli {precision}"
        entry = Contestant(name, lambda result: result.reshape(len(x), sizes.n_in, sizes.n_out).mT, precision)
        entry.prepare = lambda: run
        return entry

    def first_calls(self) -> None:
        """The first call in each precision: tracing, cutting and measuring included.

        Where jacli refuses a reduced precision, its note says why.
        """
        for entry in self.jacli.values():
            assert entry.prepare is not None
            try:
                entry.first_call = self._timed(entry.prepare())[1]
            except JacliError as error:
                if entry.precision == EXACT:
                    raise
                entry.say(_first_line(error))
                entry.prepare = None
        self.deadline = time.perf_counter() + self.budget

    def try_peer(self, peer: Peer, function: Function, x: Tensor) -> None:
        """Run each chunk size on a part of the work; keep the one that foretells the least.

        ``function`` and ``x`` are what `Peer.prepare` takes: flat outputs, and on the CPU for JAX.
        """
        entry = Contestant(peer.name, lambda result: as_matrices(result, peer.layout))
        self.peers.append(entry)
        reason = peer.why_not(self.sizes)
        if reason:
            entry.say(reason)
            return
        for chunk in peer.variants(self.sizes):
            needed = peer.bytes_needed(self.sizes, chunk)
            if time.perf_counter() > self.deadline:
                entry.say("out of budget")
                break
            if needed > _free_bytes(self.x.device):
                entry.say(f"{chunk or 'all'} at once would need about {needed / 1e9:.0f} GB")
            elif chunk is not None or not entry.seconds or entry.best < _LONG_SECONDS:
                self._trial(entry, peer, function, x, chunk)

    def _trial(self, entry: Contestant, peer: Peer, function: Function, x: Tensor, chunk: int | None) -> None:
        whole = self.sizes.count(peer.unit)
        size = min(_TRIAL[peer.unit], whole)
        if peer.chunk_of == peer.unit and (chunk or entry.seconds):
            size = min(max(size, chunk or whole), whole)
        part = (function, x) if size == whole else part_of(function, x, peer.unit, size)
        try:
            run = peer.prepare(*part, chunk)
            result, seconds = self._timed(run)
            if seconds < 1:  # the first may have warmed caches
                result, again = self._timed(run)
                seconds = min(seconds, again)
        except Exception as error:  # that a peer fails is a result too
            entry.say(_first_line(error))
            return
        seconds *= whole / size
        if seconds < entry.best:
            entry.seconds, entry.share = [seconds], size / whole
            entry.variant = f"{peer.chunk_of} {chunk or 'all'}" if len(peer.chunks) > 1 else ""
            entry.prepare = (lambda: run) if size == whole else (lambda: peer.prepare(function, x, chunk))
            self._check(entry, result)

    def play(self, log: Callable[[str], None]) -> None:
        """The rounds: all contestants in turn, so that a drift of the machine meets all."""
        foretold = min((entry.best for entry in self.peers), default=float("inf"))
        playing = [entry for entry in self.jacli.values() if entry.prepare]
        for entry in self.peers:
            if entry.best > max(_HOPELESS_TRIAL * foretold, 1.0) and entry.share < 1.0:
                entry.say("foretold from a part" if entry.seconds else "")
            elif entry.prepare:
                playing.append(entry)
        for position in range(self.rounds):
            for entry in playing:
                if position and time.perf_counter() > self.deadline:
                    for own in self.jacli.values():
                        own.say("out of budget")
                    return
                self._play_once(entry, first=position == 0)
            log(f"round {position + 1}: " + ", ".join(f"{c.name} {c.best:.3g}" for c in playing))
            playing = self._worth_repeating(playing, position + 1)

    def _play_once(self, entry: Contestant, *, first: bool) -> None:
        assert entry.prepare is not None
        try:
            entry.run = entry.run or entry.prepare()
            result, seconds = self._timed(entry.run)
        except Exception as error:
            if self._is_own(entry):
                raise
            entry.say(_first_line(error))
            return
        if first:  # whatever the trial foretold
            entry.seconds, entry.share = [], 1.0
            self._check(entry, result)
        entry.seconds.append(seconds)

    def _worth_repeating(self, playing: Iterable[Contestant], runs: int) -> list[Contestant]:
        best = min((entry.best for entry in self.peers if entry.measured), default=float("inf"))
        kept = []
        for entry in playing:
            if not self._is_own(entry) and entry.best > _HOPELESS * best:
                entry.say(f"over {_HOPELESS:.0f} times the best peer, not repeated")
            elif entry.measured and (entry.best < _LONG_SECONDS or runs < _LONG_RUNS):
                kept.append(entry)
        return kept

    def _is_own(self, entry: Contestant) -> bool:
        return self.jacli.get(entry.precision) is entry

    def _timed(self, run: Runner) -> tuple[Tensor, float]:
        cuda = self.x.is_cuda
        if cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        result = run()
        if cuda:
            torch.cuda.synchronize()
        return result, time.perf_counter() - start

    def _check(self, entry: Contestant, result: Tensor) -> None:
        """Note the relative Frobenius error of each sample; of a part, against that part."""
        matrices = entry.matrices(result).detach()
        errors = _relative_errors(matrices, self.reference)
        entry.error = float(errors.median())
        if entry.precision == EXACT:
            entry.kinks = int((~(errors <= KINK)).sum())  # NaN counts
        elif self._exact is not None:
            entry.beside_exact = float(_relative_errors(matrices, self._exact).median())
        if self._is_own(entry) and entry.precision == EXACT:
            self._exact = matrices


def _relative_errors(matrices: Tensor, reference: Tensor) -> Tensor:
    """In the Frobenius norm, ``(batch,)``; the matrices may be the first ones, rows or columns only."""
    right = reference[tuple(slice(n) for n in matrices.shape)].double()
    norms = torch.linalg.vector_norm(right, dim=(1, 2))
    errors: Tensor = torch.linalg.vector_norm(matrices.to(right) - right, dim=(1, 2)) / norms
    return errors


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:120]}"


def _free_bytes(device: torch.device) -> float:
    """Two thirds of what is free now: the estimates are rough."""
    release_cached_memory(device)
    return free_memory(device) * 2 / 3
