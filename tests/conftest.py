"""Eight virtual CPU devices for every test, set before anything uses JAX."""

import os

import hypothesis
import jax
import pytest

# Nearly all of the time goes to compilers, and more than half of it to making small
# kernels faster than any test needs. What XLA itself does (fusion, partitioning,
# scheduling) is under test and stays. The exact top k is compiled as users compile it
# (`helpers.AS_FOR_USERS`), and processes that tests start are as users run them.
FLAGS = ["--xla_backend_optimization_level=0"]
if jax.__version_info__ < (0, 11):  # has a second generator of kernels, twice as fast
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS])

jax.config.update("jax_num_cpu_devices", 8)

# Keras chooses its backend when it is first imported.
os.environ.setdefault("KERAS_BACKEND", "jax")

# They need packages of their own: `make test-clients`.
collect_ignore = ["clients"]

# Deterministic, and without deadlines: the first example of a test compiles.
hypothesis.settings.register_profile(
    "gradprune", derandomize=True, deadline=None, max_examples=30, database=None
)
hypothesis.settings.load_profile("gradprune")


@pytest.fixture(autouse=True, scope="module")
def _free_programs():
    """Forget compiled programs after each file.

    Every program maps memory of its own, and Linux allows a process 65,530 maps: a
    worker that ran most of the files crashed in the compiler.
    """
    yield
    jax.clear_caches()
