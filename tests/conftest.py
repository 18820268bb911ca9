"""Eight virtual CPU devices for every test, set before anything uses JAX."""

import hypothesis
import jax

jax.config.update("jax_num_cpu_devices", 8)

# Deterministic, and without deadlines: the first example of a test compiles.
hypothesis.settings.register_profile(
    "gradprune", derandomize=True, deadline=None, max_examples=30, database=None
)
hypothesis.settings.load_profile("gradprune")
