"""One search of a tracker: what it follows from one map to the next, and what it looks for anew."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from convla._array import namespace, on_device_of, to_numbers
from convla.spectra.batch import Batch
from convla.spectra.block_iteration import Block, iterate, least_share, orthonormal, reach
from convla.spectra.carrier import Carrier
from convla.spectra.krylov import FAR, KrylovSpace, extended
from convla.spectra.result import SingularValues
from convla.spectra.scaling import scaled_by
from convla.spectra.status import Status
from convla.typing import Array

if TYPE_CHECKING:
    from convla.spectra.tracking import BlockTracker

__all__ = ["COLD_STEPS", "EXACT_ENTRIES", "Search", "State"]

State = Mapping[str, Array]
"""What is carried from one map to the next: arrays by name, of shapes that the map's shape fixes."""

COLD_STEPS = 1000
"""Of the iteration from nothing."""

_PROBE_STEPS = 4
"""What a random vector gets at least to show what it points at."""

_SLACK = 1e-3
"""A group that comes so near the wanted values is followed, whatever the bounds say."""

# Parts of at most this many operations are decomposed as wholes: where it costs no more than steps of the iteration,
# and in a search from nothing; earlier than at the upper end to a modest accuracy, where the iteration is fast. Unit
# vectors and their images have to fit in memory.
_WARM_WORK, _COLD_WORK, _MODEST_WORK = 2.0**19, 2.0**30, 2.0**27
_RENEWED_WORK = 2.0**22  # in a search for what has come from beside the block
_MODEST_RTOL = 1e-4
EXACT_ENTRIES = 2**23


@dataclass
class _Run:
    """A block iteration on some groups of one part, and what it found."""

    part: int
    groups: list[int]
    block: Block
    squares: list[float]
    residuals: list[float]
    tolerance: float
    above: float = math.inf
    """A square that its values are known not to exceed."""


class Search:
    """One step of a tracker: which groups are looked at, what is found in their parts, and what is carried on."""

    def __init__(
        self,
        tracker: BlockTracker,
        carrier: Carrier,
        state: State,
        interest: float = 0.0,
        norm: float = 0.0,
    ) -> None:
        self.tracker, self.carrier, self.state = tracker, carrier, state
        self.interest, self.norm = (math.ldexp(number, -carrier.exponent) for number in (interest, norm))
        self.xp = namespace(carrier.linear_map.like)
        self.updates = int(state["updates"])
        self.count = min(tracker.block, carrier.linear_map.shape[1])
        self.settled = (self.count + 1) // 2
        self.sign = 1.0 if tracker.end == "largest" else -1.0
        self.runs: list[_Run] = []
        self.products = 0

    def choice(self) -> tuple[list[int], list[int], float]:
        """Return the groups to be followed, those to be searched anew, and what is known to be among the values.

        The last is a squared singular value, with its sign changed at the lower end, or minus infinity.
        """
        every = list(range(self.carrier.groups))
        before = self.state["kernel"]
        if not self.updates or not self.carrier.has_the_parts_of(before):
            return [], every, -math.inf
        drifts, lost = self.carrier.moved(before)
        if self.tracker.outermost and self.interest > 0 and self.sign > 0:
            # Far below what is of interest, to see that it still is takes less than to follow it.
            values = self._before("values").max(axis=1)
            lost = [gone or value < FAR * self.interest for gone, value in zip(lost, values, strict=True)]
        near, bar = every, -math.inf
        if len(every) > 1:
            drift, sign = np.array(drifts), self.sign
            values = self._before("values")
            known = np.sort((sign * values - drift[:, None]).ravel())[::-1][self.count - 1]
            reached = sign * self._before("bounds")[:, 0] + drift + _SLACK * abs(known)
            near = np.flatnonzero(reached >= known).tolist() or every
            bar = sign * max(0.0, sign * float(known)) ** 2 if math.isfinite(known) else bar
        return [group for group in near if not lost[group]], [group for group in near if lost[group]], bar

    def follow(self, groups: list[int], bar: float) -> bool:
        """Iterate from the carried vectors of some groups, in all parts, and tell whether that converged."""
        done = [self._followed(part, groups, bar) for part in self._parts(groups)]  # of all of them
        return all(done) and not self._has_fallen()

    def _followed(self, part: int, groups: list[int], bar: float) -> bool:
        batch, beside = self.carrier.batch(part, groups), -math.inf
        basis = self._whole(batch, _WARM_WORK)
        if basis is None:
            beside = self._beside(groups) if len(self.carrier.parts) == 1 else beside
            count = self._rows(batch)
            # What the carried vectors do not point at, the last ones do, which random ones are added to.
            fresh = min(self.tracker.reseed, count)
            carried = self.carrier.split(self.state["vectors"], part, groups)[:, :count, :]
            stirred = carried[:, count - fresh :, :] + self._draws(batch, fresh, part)
            # Orthonormal before anything is read off: a block with random parts, or from a saved state, is not.
            basis = orthonormal(self.xp.concat([carried[:, : count - fresh, :], stirred], axis=1), self.xp)
        return self._iterate(part, groups, batch, basis, self.tracker.steps, self.settled, bar, beside)

    def go_on(self, bar: float) -> bool:
        """Go on where that did not converge, and search anew what has fallen below what there was beside the block."""
        fallen, runs, self.runs = self._has_fallen(), self.runs, []
        done = [
            self._begun(run.part, run.groups, bar, _RENEWED_WORK) if fallen else self._gone_on(run, bar) for run in runs
        ]  # of all of them
        return all(done)

    def _has_fallen(self) -> bool:
        """Tell whether the outermost value of what was followed does not come up to what there may be beside it."""
        end, groups = self.tracker.end, sorted({group for run in self.runs for group in run.groups})
        found = [float(reach(run.block.squares, run.block.residuals, end)) + run.tolerance for run in self.runs]
        return max(found, default=math.inf) < self._beside(groups)

    def _beside(self, groups: list[int]) -> float:
        """Return the last square of the blocks of some groups, its sign changed at the lower end, before the change.

        There may be as much beside a block: where all of it has fallen below, that may be the outermost now. Vectors
        that were orthogonal to it show nothing of it, however small their residuals.
        """
        if not self.tracker.outermost or not groups:
            return -math.inf
        return float((self.sign * self._before("values")[groups, -1] ** 2).max())

    def _before(self, name: str) -> np.ndarray:
        """Return the values, or bounds, of each group that are in the state, scaled as the map is."""
        known = np.reshape(to_numbers(self.state[name]), (self.carrier.groups, -1))
        return np.asarray(np.ldexp(known, -self.carrier.exponent))

    def _gone_on(self, run: _Run, bar: float) -> bool:
        """Iterate with as many random vectors beside those that were found."""
        batch, found = self.carrier.batch(run.part, run.groups), run.block.vectors
        basis = self._whole(batch, self._cold_work)
        if basis is None:
            more = min(max(found.shape[1], self._rows(batch) - found.shape[1]), batch.order - found.shape[1])
            basis = orthonormal(self.xp.concat([found, self._draws(batch, more, run.part)], axis=1), self.xp)
        return self._iterate(run.part, run.groups, batch, basis, COLD_STEPS, self._all, bar)

    def begin(self, groups: list[int], bar: float) -> bool:
        """Search some groups from nothing, and tell whether that converged."""
        done = [self._begun(part, groups, bar, self._cold_work) for part in self._parts(groups)]  # of all of them
        return all(done)

    def _begun(self, part: int, groups: list[int], bar: float, work: float) -> bool:
        batch = self.carrier.batch(part, groups)
        basis = self._whole(batch, work)
        if basis is None and self.tracker.outermost and batch.groups == 1:
            return self._extended(part, groups, batch) or self._gone_on(self.runs.pop(), bar)
        if basis is None:
            basis = orthonormal(self._draws(batch, self._rows(batch), part), self.xp)
        return self._iterate(part, groups, batch, basis, COLD_STEPS, self._all, bar)

    def _extended(self, part: int, groups: list[int], batch: Batch) -> bool:
        """Search one map of a part by a Krylov space, from that of the other end if there is one."""
        spaces = self.carrier.spaces
        if part not in spaces:
            spaces[part] = KrylovSpace(batch, orthonormal(self._draws(batch, 1, part), self.xp))
        space, before = spaces[part], spaces[part].rows
        block, known, tolerance, above = extended(
            space, end=self.tracker.end, count=self._rows(batch), rtol=self.tracker.rtol, bar=self.interest**2
        )
        self.products += space.rows - before
        squares, residuals = to_numbers(block.squares), to_numbers(block.residuals)
        self.runs.append(_Run(part, groups, block, squares, residuals, tolerance, above))
        return known

    def _iterate(
        self,
        part: int,
        groups: list[int],
        batch: Batch,
        basis: Array,
        steps: int,
        settled: int,
        bar: float,
        beside: float = -math.inf,
    ) -> bool:
        tracker = self.tracker
        block, converged, tolerance = iterate(
            batch,
            basis,
            count=self._rows(batch),
            settled=settled,
            end=tracker.end,
            rtol=tracker.rtol,
            steps=steps,
            probes=tracker.reseed,
            probe_steps=_PROBE_STEPS,
            bar=max(bar, self._bar()),
            outermost=tracker.outermost,
            norm=self.norm**2,
            beside=beside,
        )
        self.products += block.products
        squares, residuals = to_numbers(block.squares), to_numbers(block.residuals)
        self.runs.append(_Run(part, groups, block, squares, residuals, tolerance))
        return converged

    def _parts(self, groups: list[int]) -> range:
        return range(len(self.carrier.parts) if groups else 0)

    def _rows(self, batch: Batch) -> int:
        """Return how many vectors are carried in each map of a batch."""
        return min(self.tracker.block + self.tracker.reseed, batch.order)

    @property
    def _all(self) -> int:
        """How many vectors have to settle in a search that may take long."""
        return 1 if self.tracker.outermost else self.count

    @property
    def _cold_work(self) -> float:
        tracker = self.tracker
        modest = tracker.rtol >= _MODEST_RTOL and (tracker.end == "largest" or tracker.outermost)
        return _MODEST_WORK if modest else _COLD_WORK

    def _bar(self) -> float:
        """Return the last of the outermost squares that are found so far and have to settle."""
        found = sorted((self.sign * square for run in self.runs for square in run.squares), reverse=True)
        return found[self.settled - 1] if len(found) >= self.settled else -math.inf

    def _whole(self, batch: Batch, work: float) -> Array | None:
        """Return the unit vectors of every map of a batch, if to decompose its Gram matrices is so little work."""
        size, xp, like = batch.order, self.xp, self.carrier.linear_map.like
        if batch.groups * float(size) ** 3 > work or size * sum(batch.linear_map.shape) > EXACT_ENTRIES:
            return None
        return on_device_of(np.tile(np.eye(size), (batch.groups, 1, 1)), like, xp, dtype=like.dtype)

    def _draws(self, batch: Batch, count: int, part: int) -> Array:
        """Return random vectors, which depend on the tracker's seed and on how many updates were made."""
        generator = np.random.default_rng([self.tracker.rng, self.updates, part])
        draws = generator.standard_normal((batch.groups, count, batch.order)) / batch.order**0.5
        like = self.carrier.linear_map.like
        return on_device_of(draws, like, self.xp, dtype=like.dtype)

    def found(self, converged: bool) -> SingularValues:
        """Return the outermost triplets of the whole map from those of its parts."""
        xp, carrier, linear_map = self.xp, self.carrier, self.carrier.linear_map
        if carrier.single:
            block = self.runs[-1].block
            squares, residuals = block.squares[0, : self.count], block.residuals[0, : self.count]
            vectors = xp.reshape(block.vectors[0, : self.count, :], (-1, *linear_map.domain_shape))
            images = xp.reshape(block.images[0, : self.count, :], (-1, *linear_map.range_shape))
        else:
            squares, residuals, vectors, images = self._assembled()
        values = xp.sqrt(squares)
        inverse = 1 / xp.where(values > 0, values, xp.ones_like(values))
        norms, of_squares = np.array(to_numbers(values)), np.array(to_numbers(residuals))
        beside = of_squares / np.where(norms > 0, norms, 1.0)
        exponent = carrier.exponent
        return SingularValues(
            values=scaled_by(xp.astype(values, xp.float64), exponent),
            left=xp.reshape(inverse, (-1,) + (1,) * len(linear_map.range_shape)) * images,
            right=vectors,
            residuals=np.ldexp(beside, exponent),
            errors=np.ldexp(np.minimum(beside, np.sqrt(of_squares)), exponent),
            upper=math.inf,
            matvecs=2 * self.products,
            status=Status.ESTIMATED if converged else Status.NOT_CONVERGED,
            method="block",
        )

    def _assembled(self) -> tuple[Array, Array, Array, Array]:
        """Return the outermost squares, residuals, vectors and images among those of all parts and their copies."""
        xp, carrier = self.xp, self.carrier
        places = []
        for run in self.runs:
            signed = self.sign * np.array(run.squares)
            outermost = np.argsort(-signed, kind="stable")[: self.count].tolist()
            copies = range(min(self.count, carrier.parts[run.part].copies))
            places += [(signed[number], run, number, copy) for number in outermost for copy in copies]
        places.sort(key=lambda place: -place[0])
        # Entries that the map does not read are its null vectors: the first of the smallest, the last of the largest.
        wanted = self.count if self.tracker.end == "smallest" or len(places) < self.count else 0
        unread = carrier.unread(wanted) if wanted else []
        nulls = len(unread) if self.tracker.end == "smallest" else max(0, self.count - len(places))
        found = []
        for _, run, number, copy in places[: self.count - nulls]:
            block = run.block
            group, row = divmod(number, block.squares.shape[1])
            vector, image = carrier.place(
                block.vectors[group, row, :], block.images[group, row, :], run.part, run.groups[group], copy
            )
            found.append((block.squares[group, row], block.residuals[group, row], vector, image))
        for number, unit in enumerate(unread[:nulls]):
            zero, image = (xp.zeros_like(unit[(0,) * unit.ndim]), xp.zeros_like(carrier.linear_map._apply(unit)))
            found.insert(number if self.tracker.end == "smallest" else len(found), (zero, zero, unit, image))
        squares, residuals, vectors, images = (xp.stack(column) for column in zip(*found, strict=True))
        return squares, residuals, vectors, images

    def carried(self) -> State:
        """Return the state after the step: what was found of the groups that were looked at, the rest as it was."""
        xp, carrier, like = self.xp, self.carrier, self.carrier.linear_map.like
        groups = sorted({group for run in self.runs for group in run.groups})
        values, bounds = self._known(groups)
        looked = on_device_of(np.isin(np.arange(carrier.groups), groups), like, xp)
        new = {
            "values": on_device_of(values, like, xp, dtype=like.dtype),
            "bounds": on_device_of(bounds, like, xp, dtype=like.dtype),
            "kernel": carrier.parameters,
        }
        state = {}
        for name, array in new.items():
            mask = xp.reshape(looked, (-1,) + (1,) * (array.ndim - 1))
            state[name] = array if len(groups) == carrier.groups else xp.where(mask, array, self.state[name])
        vectors = self.state["vectors"]
        for run in self.runs:
            vectors = carrier.join(run.block.vectors, vectors, run.part, run.groups)
        return {**state, "vectors": vectors, "updates": self.state["updates"] + 1}

    def _known(self, groups: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return the outermost values of each group, and what its outermost value does not exceed, as far as is known.

        Rows of groups that were not looked at are 0.
        """
        block, order = self.tracker.block, self.carrier.groups
        worst = 0.0 if self.sign > 0 else math.inf
        values, bounds = np.full((order, block), worst), np.full(order, -math.inf)
        per_group: dict[int, list[float]] = {group: [] for group in groups}
        for run in self.runs:
            shape = tuple(run.block.squares.shape)
            squares, residuals = np.reshape(run.squares, shape), np.reshape(run.residuals, shape)
            copies = min(block, self.carrier.parts[run.part].copies)
            share = least_share(run.block.vectors.shape[2])
            reach = self.sign * squares + np.where(residuals <= 2 * run.tolerance, residuals, residuals / share)
            for number, group in enumerate(run.groups):
                per_group[group] += np.repeat(squares[number], copies).tolist()
                bounds[group] = max(bounds[group], min(run.above, float(reach[number, : self.settled].max())))
        for group, found in per_group.items():
            outermost = sorted(found, reverse=self.sign > 0)[:block]
            values[group, : len(outermost)] = np.sqrt(outermost)
        bounds = np.sqrt(np.maximum(0.0, self.sign * bounds))
        return np.ldexp(values, self.carrier.exponent), np.ldexp(bounds, self.carrier.exponent)
