"""How much each factor's effect changes from seed to seed, and the errors made up of that.

A seed may favour one prediction type in all its cells. Then cells that differ in prediction type
scatter more, and those that share it less, than a common mean square says. The space of contrasts
of cells is split into main effects, pairs of factors and the rest, T = A, B, ..., A x B, ...; with
P_T the projection on T and M_T the mean square of T x seeds,

    Var(c . cell means) = v sum_T w_T M_T,    w_T = |P_T c|^2 / |c|^2,    v M if all M_T were one M

on as many degrees of freedom as Satterthwaite (1946) gives. A main effect so is held against its
own changes over seeds, which is the F test of a design with seeds as random blocks. numpy only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np


@dataclass(frozen=True, kw_only=True, eq=False)
class Stratum:
    """A main effect, an interaction of two, or all beyond. factors: their numbers, () for the rest.

    basis: (C, d) orthonormal columns, orthogonal to all before and to the mean of cells.
    """

    factors: tuple[int, ...]
    basis: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class Strata:
    """The strata of some cells with the mean square of each times seeds, and its degrees."""

    strata: tuple[Stratum, ...]
    squares: np.ndarray
    dofs: np.ndarray

    def share(self, contrast: np.ndarray) -> tuple[float, float]:
        """sum_T w_T M_T of a contrast of cells, and its degrees of freedom."""
        parts = [np.square(one.basis.T @ contrast).sum() for one in self.strata]
        variance, dof = self._made_of(np.array(parts))
        return float(variance), float(dof)

    def of_pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """The same of all differences of two cells, (C, C) each."""
        products = [one.basis @ one.basis.T for one in self.strata]
        spreads = [np.diag(product) for product in products]
        parts = [
            spread[:, None] + spread[None] - 2 * product
            for spread, product in zip(spreads, products, strict=True)
        ]
        # squares: what rounding left below zero would be the whole of a variance that is zero
        return self._made_of(np.maximum(parts, 0.0))

    def _made_of(self, parts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """parts: (T, ...) of |P_T c|^2."""
        shape = (-1, *(1,) * (parts.ndim - 1))
        whole = parts.sum(axis=0)
        weights = np.divide(parts, whole, out=np.zeros_like(parts), where=whole > 1e-12)
        terms = weights * self.squares.reshape(shape)
        total = terms.sum(axis=0)
        below = (terms * terms / self.dofs.reshape(shape)).sum(axis=0)
        dofs = np.full_like(total, self.dofs.sum())
        return total, np.divide(total * total, below, out=dofs, where=below > 0)


def split(codes: np.ndarray) -> tuple[Stratum, ...]:
    """The strata of cells. codes: (C, factors), the number of each cell's level of each factor."""
    cells, factors = codes.shape
    known = np.full((cells, 1), 1 / np.sqrt(cells))
    found = []
    for size in (1, 2):
        for term in combinations(range(factors), size) if factors > 1 else ():
            _, groups = np.unique(codes[:, term], axis=0, return_inverse=True)
            columns = np.eye(int(groups.max()) + 1)[groups.ravel()]
            basis = _beyond(columns, known)
            if basis.shape[1]:
                found.append(Stratum(factors=term, basis=basis))
                known = np.hstack([known, basis])
    rest = _beyond(np.eye(cells), known)
    if rest.shape[1]:
        found.append(Stratum(factors=() if factors != 1 else (0,), basis=rest))
    return tuple(found)


def strata(parts: Sequence[Stratum], values: np.ndarray) -> Strata | None:
    """The mean squares from (cells, seeds); only seeds that all cells have, None below two."""
    whole = values[:, np.isfinite(values).all(axis=0)]
    seeds = whole.shape[1]
    if seeds < 2 or not parts:
        return None
    centred = whole - whole.mean(axis=1, keepdims=True)
    dofs = np.array([one.basis.shape[1] * (seeds - 1) for one in parts], dtype=np.float64)
    sums = np.array([np.square(one.basis.T @ centred).sum() for one in parts])
    return Strata(strata=tuple(parts), squares=sums / dofs, dofs=dofs)


def _beyond(columns: np.ndarray, known: np.ndarray) -> np.ndarray:
    """An orthonormal basis of what columns span beyond `known`, whose columns are orthonormal."""
    left = columns - known @ (known.T @ columns)
    vectors, sizes, _ = np.linalg.svd(left, full_matrices=False)
    return vectors[:, sizes > 1e-9]
