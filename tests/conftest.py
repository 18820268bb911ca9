"""Eight virtual CPU devices for every test, set before anything uses JAX."""

import os

import hypothesis
import jax

# Nearly all of the time goes to compilers, and a fifth of it to LLVM, which makes small
# kernels faster than any test needs. What XLA itself does (fusion, partitioning,
# scheduling) is under test and stays. Processes that tests start are as users run them.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"
)

jax.config.update("jax_num_cpu_devices", 8)

# Deterministic, and without deadlines: the first example of a test compiles.
hypothesis.settings.register_profile(
    "gradprune", derandomize=True, deadline=None, max_examples=30, database=None
)
hypothesis.settings.load_profile("gradprune")
