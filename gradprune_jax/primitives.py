"""Rules of primitives, for `shrink` and `channel_groups` to know one of your own.

A primitive without a rule fixes all dimensions that it touches: nothing is cut there.
A rule says three things of it: which axes are cut alike, what is zero, and how it is
run on smaller arrays. Most primitives are like one that is known, whose rule is then
theirs too:

>>> import jax, jax.numpy as jnp, gradprune_jax as gp
>>> from jax.extend.core import Primitive
>>> from jax.interpreters import mlir
>>> softsign_p = Primitive("softsign")
>>> _ = softsign_p.def_impl(lambda x: x / (1 + jnp.abs(x)))
>>> _ = softsign_p.def_abstract_eval(lambda x: x)
>>> def fn(params, x):
...     return softsign_p.bind(x @ params["w1"]) @ params["w2"]
>>> params = {"w1": jnp.ones((2, 3)).at[:, 1].set(0), "w2": jnp.ones((3, 1))}
>>> x = jnp.ones((1, 2))
>>> gp.shrink(fn, params, x).params["w1"].shape  # softsign is not known
(2, 3)
>>> rules = {"softsign": Elementwise()}
>>> gp.shrink(fn, params, x, rules=rules).params["w1"].shape
(2, 2)

Others subclass `PrimitiveRule`.
"""

from gradprune_jax._program import RULES as RULES
from gradprune_jax._program import Analysis as Analysis
from gradprune_jax._program import Cut as Cut
from gradprune_jax._program import Elementwise as Elementwise
from gradprune_jax._program import PrimitiveRule as PrimitiveRule
from gradprune_jax._program import Product as Product
from gradprune_jax._program import Step as Step
from gradprune_jax._program import Zeros as Zeros
from gradprune_jax._program import bind as bind
