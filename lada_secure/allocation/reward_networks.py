"""The small networks of the reward model, and the pooling of their gradients."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize

from lada_secure.arrays import FloatArray

# Most conjugate-gradient iterations of a fit.
_ITERATIONS = 60
# Strength of the pull to the start, as a number of observations.
_PULL = 0.5


class ZeroStartNetwork:
    """g(x; theta) - g(x; theta_0) with one tanh layer: exactly zero before any training.

    Training is pulled back to theta_0, so far from all observations it says "as the mean". Passes
    are written out in NumPy: at a few hundred weights an automatic differentiation engine costs
    more than the arithmetic, and the tests check the gradients against one.
    """

    def __init__(self, width: int, hidden: int, generator: np.random.Generator) -> None:
        """Args: width: inputs. hidden: units of the tanh layer. generator: initial weights."""
        self.width = width
        self._hidden = hidden
        self._start: FloatArray = np.concatenate(
            [
                generator.standard_normal(hidden * width) / width**0.5,
                np.zeros(hidden),
                generator.standard_normal(hidden) / hidden**0.5,
                np.zeros(1),
            ]
        )
        self._now = self._start

    def outputs(self, inputs: FloatArray) -> FloatArray:
        """(m, width) -> (m,)."""
        return self._raw(self._now, inputs) - self._raw(self._start, inputs)

    def gradients(self, inputs: FloatArray) -> FloatArray:
        """Gradient of the output by every weight at each input, (m, P), at the present weights."""
        weight, offset, out, _ = self._parts(self._now)
        hidden = _tanh_layer(weight, offset, inputs)
        inner = out * (1.0 - hidden**2)
        outer = (inner[:, :, None] * inputs[:, None, :]).reshape(len(inputs), -1)
        return np.concatenate([outer, inner, hidden, np.ones((len(inputs), 1))], axis=1)

    def fit(self, inputs: FloatArray, targets: FloatArray, weights: FloatArray) -> None:
        """Train on from the present weights: weighted mean of squares plus the pull to the start.

        Args: inputs: (m, width). targets, weights: (m,).
        """
        origin = self._raw(self._start, inputs)
        share = _PULL / len(targets)

        def objective(theta: FloatArray) -> tuple[float, FloatArray]:
            error = self._raw(theta, inputs) - origin - targets
            away = theta - self._start
            value = float((weights * error**2).mean() + share * (away @ away))
            slope = self._back(theta, inputs, 2.0 * weights * error / len(targets))
            return value, slope + 2.0 * share * away

        result = minimize(
            objective, self._now, jac=True, method="CG", options={"maxiter": _ITERATIONS}
        )
        self._now = np.asarray(result.x, dtype=np.float64)

    def _parts(self, theta: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        hidden, width = self._hidden, self.width
        ends = np.cumsum([hidden * width, hidden, hidden])
        weight, offset, out, shift = np.split(theta, ends)
        return weight.reshape(hidden, width), offset, out, shift

    def _raw(self, theta: FloatArray, inputs: FloatArray) -> FloatArray:
        weight, offset, out, shift = self._parts(theta)
        values: FloatArray = (_tanh_layer(weight, offset, inputs) * out).sum(axis=1) + shift
        return values

    def _back(self, theta: FloatArray, inputs: FloatArray, slopes: FloatArray) -> FloatArray:
        """Sum over inputs of slope x gradient, (P,), without forming the (m, P) gradients."""
        weight, offset, out, _ = self._parts(theta)
        hidden = _tanh_layer(weight, offset, inputs)
        inner = slopes[:, None] * out * (1.0 - hidden**2)
        outer = np.einsum("mh,mw->hw", inner, inputs).ravel()
        return np.concatenate(
            [outer, inner.sum(axis=0), (slopes[:, None] * hidden).sum(axis=0), [slopes.sum()]]
        )


def _tanh_layer(weight: FloatArray, offset: FloatArray, inputs: FloatArray) -> FloatArray:
    # einsum rather than a BLAS product: for matrices this small, BLAS threads that spin on a
    # machine with several busy processes made a fit ten times slower.
    values: FloatArray = np.tanh(np.einsum("mw,hw->mh", inputs, weight) + offset)
    return values


def pooled_unit_rows(rows: FloatArray, features: int) -> FloatArray:
    """Average (m, P) in blocks down to (m, features) and scale every row to norm 1.

    Where P < features the missing columns are 0; a row of zeros stays zero.
    """
    block = max(-(-rows.shape[1] // features), 1)
    padded = np.pad(rows, ((0, 0), (0, block * features - rows.shape[1])))
    pooled = padded.reshape(len(rows), features, block).mean(axis=2)
    norms = np.linalg.norm(pooled, axis=1, keepdims=True)
    unit: FloatArray = pooled / np.where(norms == 0.0, 1.0, norms)
    return unit
