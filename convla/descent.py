"""First-order optimisers on arrays, written against the array API: gradient descent, momentum, adaptive steps."""

from __future__ import annotations

import math
from typing import Protocol

from convla._array import namespace
from convla._validate import check_real
from convla.typing import AnyArray, Array

__all__ = ["SGD", "AdaGrad", "Adam", "Optimizer", "RMSprop"]


class Optimizer(Protocol):
    """What a descent asks of an optimiser: one object for each array it moves."""

    def step(self, parameter: Array, gradient: Array) -> AnyArray:
        """Return `parameter` after one step along `gradient`."""


class SGD:
    """Gradient descent, ``parameter - learning_rate * velocity``, without noise.

    The velocity is the gradient, or ``momentum * velocity + gradient`` (Polyak, 1964, as PyTorch scales it).

    Parameters
    ----------
    learning_rate : float
        The step length, positive.
    momentum : float, default 0.0
        In [0, 1).
    nesterov : bool, default False
        Step along ``gradient + momentum * velocity`` (Sutskever et al., 2013).

    Examples
    --------
    >>> import numpy as np
    >>> from convla.descent import SGD
    >>> SGD(0.5).step(np.array([1.0, 2.0]), np.array([2.0, 0.0]))
    array([0., 2.])
    """

    def __init__(self, learning_rate: float, momentum: float = 0.0, *, nesterov: bool = False) -> None:
        self.learning_rate = check_real("learning_rate", learning_rate, positive=True)
        self.momentum = _check_decay("momentum", momentum)
        self.nesterov = nesterov
        self._velocity: Array | float = 0.0

    def step(self, parameter: Array, gradient: Array) -> AnyArray:
        """Return `parameter` after one step, and remember the velocity."""
        if not self.momentum:
            return parameter - self.learning_rate * gradient
        self._velocity = self.momentum * self._velocity + gradient
        along = gradient + self.momentum * self._velocity if self.nesterov else self._velocity
        return parameter - self.learning_rate * along


class AdaGrad:
    """AdaGrad (Duchi, Hazan and Singer, 2011, Figure 1, diagonal): each entry's rate falls with its gradients' squares.

    Parameters
    ----------
    learning_rate : float
        The step length, positive.
    epsilon : float, default 1e-10
        Added to the root of the sum of squares.

    Examples
    --------
    >>> import numpy as np
    >>> from convla.descent import AdaGrad
    >>> AdaGrad(0.1).step(np.array([1.0, 1.0]), np.array([3.0, -4.0])).round(6)
    array([0.9, 1.1])
    """

    def __init__(self, learning_rate: float, epsilon: float = 1e-10) -> None:
        self.learning_rate = check_real("learning_rate", learning_rate, positive=True)
        self.epsilon = check_real("epsilon", epsilon, positive=True)
        self._squares: Array | float = 0.0

    def step(self, parameter: Array, gradient: Array) -> AnyArray:
        """Return `parameter` after one step, and remember the squares of `gradient`."""
        xp = namespace(parameter, gradient)
        self._squares = self._squares + gradient * gradient
        return parameter - self.learning_rate * gradient / (xp.sqrt(self._squares) + self.epsilon)


class RMSprop:
    """RMSprop (Tieleman and Hinton, 2012, Lecture 6.5): AdaGrad with squares that are forgotten.

    Parameters
    ----------
    learning_rate : float
        The step length, positive.
    decay : float, default 0.99
        Of the mean of the squares, in [0, 1).
    epsilon : float, default 1e-8
        Added to its root.

    Examples
    --------
    >>> import numpy as np
    >>> from convla.descent import RMSprop
    >>> RMSprop(0.1).step(np.array([1.0, 1.0]), np.array([3.0, -4.0])).round(6)
    array([0., 2.])
    """

    def __init__(self, learning_rate: float, decay: float = 0.99, epsilon: float = 1e-8) -> None:
        self.learning_rate = check_real("learning_rate", learning_rate, positive=True)
        self.decay = _check_decay("decay", decay)
        self.epsilon = check_real("epsilon", epsilon, positive=True)
        self._squares: Array | float = 0.0

    def step(self, parameter: Array, gradient: Array) -> AnyArray:
        """Return `parameter` after one step, and remember the squares of `gradient`."""
        xp = namespace(parameter, gradient)
        self._squares = self.decay * self._squares + (1.0 - self.decay) * (gradient * gradient)
        return parameter - self.learning_rate * gradient / (xp.sqrt(self._squares) + self.epsilon)


class Adam:
    """Adam (Kingma and Ba, 2015, Algorithm 1), with its bias corrections.

    Parameters
    ----------
    learning_rate : float
        The step length, positive.
    betas : tuple of float, default (0.9, 0.999)
        Decay rates of the first and the second moment, in [0, 1).
    epsilon : float, default 1e-8
        Added to the root of the second moment.

    Examples
    --------
    The first step has the length of the learning rate, whatever the gradient's:

    >>> import numpy as np
    >>> from convla.descent import Adam
    >>> Adam(0.1).step(np.array([1.0, 1.0]), np.array([1e-3, -1e3])).round(6)
    array([0.900001, 1.1     ])
    """

    def __init__(self, learning_rate: float, betas: tuple[float, float] = (0.9, 0.999), epsilon: float = 1e-8) -> None:
        self.learning_rate = check_real("learning_rate", learning_rate, positive=True)
        if len(betas) != 2:
            raise ValueError(f"betas must be two numbers, got {betas!r}")
        self.betas = (_check_decay("betas[0]", betas[0]), _check_decay("betas[1]", betas[1]))
        self.epsilon = check_real("epsilon", epsilon, positive=True)
        self.steps = 0
        self._first: Array | float = 0.0
        self._second: Array | float = 0.0

    def step(self, parameter: Array, gradient: Array) -> AnyArray:
        """Return `parameter` after one step, and remember the moments of `gradient`."""
        xp = namespace(parameter, gradient)
        beta1, beta2 = self.betas
        self.steps += 1
        length = self.learning_rate / (1.0 - beta1**self.steps)
        root = math.sqrt(1.0 - beta2**self.steps)
        self._first = beta1 * self._first + (1.0 - beta1) * gradient
        self._second = beta2 * self._second + (1.0 - beta2) * (gradient * gradient)
        return parameter - length * (self._first / (xp.sqrt(self._second) / root + self.epsilon))

    @property
    def moments(self) -> tuple[Array | float, Array | float]:
        """The first and the second moment of the gradients so far; 0.0 before the first step."""
        return self._first, self._second

    def restore(self, steps: int, first: Array | float, second: Array | float) -> None:
        """Go on from the `moments` of an optimiser that has made `steps` steps."""
        self.steps, self._first, self._second = steps, first, second


def _check_decay(name: str, value: float) -> float:
    return check_real(name, value, minimum=0.0, maximum=math.nextafter(1.0, 0.0))
