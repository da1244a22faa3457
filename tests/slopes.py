"""Gradients against slopes: differences in 80 digits along a direction, for any operator."""

import mpmath
import numpy as np

from linverify.operator import Operator
from linverify.problem import Problem
from linverify.reference import highprecision


class Exact:
    """Spells just enough of a tensor to put numbers of any precision into a problem."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.shape = values, values.shape

    def double(self) -> "Exact":
        return self

    def numpy(self) -> np.ndarray:
        return self.values


def assert_gradients_are_slopes(p: Problem, operator: Operator, *, low: int) -> None:
    """Along a direction of whole numbers from `low` to 8, every input contributing."""
    with mpmath.workdps(80):
        h = mpmath.mpf("1e-20")
        given = {**p.tensors, "initial_state": p.initial_state}
        exact = {n: np.vectorize(mpmath.mpf, otypes=[object])(t.numpy()) for n, t in given.items() if t is not None}
        generator = np.random.default_rng(3)
        along = {n: generator.integers(low, 9, x.shape).astype(object) for n, x in exact.items()}

        def loss(step: mpmath.mpf) -> mpmath.mpf:
            moved = {n: Exact(x + step * along[n]) for n, x in exact.items()}
            state = moved.pop("initial_state", None)
            got = highprecision(p.with_(tensors=moved, initial_state=state, wrt=(), cotangents={}), operator, digits=80)
            return sum((got[n] * c.numpy()).sum() for n, c in p.cotangents.items())

        slope = (loss(h) - loss(-h)) / (2 * h)
        gradients = highprecision(p, operator, digits=80)
        parts = {n: (gradients[f"d{n}"] * along[n]).sum() for n in exact}
        assert all(part != 0 for part in parts.values())
        assert abs(slope - sum(parts.values())) < mpmath.mpf("1e-30") * max(abs(x) for x in parts.values())
