"""A network and its smaller one in other runtimes: the same outputs, and how long.

python deploy.py [BATCH]
"""

import pathlib
import statistics
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from rich.console import Console
from rich.table import Table

import gradprune_jax as gp
from gradprune_jax.demo.models import LinenNetwork


def in_jax(fn, params, images):
    """Compiled by XLA, in the process that trained."""
    del images
    compiled = jax.jit(fn)
    return lambda images: compiled(params, images)


def in_jax_export(fn, params, images):
    """StableHLO bytes, which need neither the model's code nor this library."""
    function = jax.jit(lambda images: fn(params, images))
    exported = export.export(function)(images)
    return jax.jit(export.deserialize(exported.serialize()).call)


def in_onnx_runtime(fn, params, images):
    """An ONNX file by jax2onnx, run by ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(to_onnx(fn, params, images))
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: np.asarray(images)})[0]


def in_openvino(fn, params, images):
    """The same ONNX file, run by OpenVINO on the CPU in float32."""
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "network.onnx")
        file.write_bytes(to_onnx(fn, params, images))
        model = openvino.convert_model(file)
    return compiled_by_openvino(model)


def in_openvino_by_jaxpr(fn, params, images):
    """OpenVINO's own converter of traced functions, which is experimental."""
    import openvino

    traced = jax.make_jaxpr(lambda images: fn(params, images))(images)
    return compiled_by_openvino(openvino.convert_model(traced))


def compiled_by_openvino(model):
    """Compile a model for the CPU; else its kernels may compute in bfloat16."""
    import openvino

    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda images: compiled([np.asarray(images)])[0]


def to_onnx(fn, params, images):
    """The bytes of an ONNX file of a function, its parameters written into it."""
    import jax2onnx

    model = jax2onnx.to_onnx(lambda images: fn(params, images), [images])
    return model.SerializeToString()


RUNTIMES = {
    "JAX": in_jax,
    "jax.export": in_jax_export,
    "ONNX Runtime": in_onnx_runtime,
    "OpenVINO, from ONNX": in_openvino,
    "OpenVINO, from a jaxpr": in_openvino_by_jaxpr,
}


def measure(runtime, networks, images, rounds=30):
    """The median milliseconds of each network in a runtime, or why there are none."""
    calls, outcomes = {}, {}
    for name, (fn, params) in networks.items():
        try:
            calls[name] = runtime(fn, params, images)
        except Exception as error:  # whatever a converter can't do
            outcomes[name] = f"{type(error).__name__}: {reason(error)}"
            continue
        wanted = np.asarray(fn(params, images))
        np.testing.assert_allclose(calls[name](images), wanted, rtol=1e-3, atol=1e-5)
    times = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            started = time.perf_counter()
            jax.block_until_ready(call(images))
            times[name].append(1000 * (time.perf_counter() - started))
    return outcomes | {name: statistics.median(own) for name, own in times.items()}


def reason(error):
    """The line of an error that says what went wrong."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if "Error:" in line]
    return (named or lines or [""])[0]


def main(batch=1):
    """Prunes half of the channels, cuts them out, and shows both in every runtime."""
    model = LinenNetwork()
    images = np.random.default_rng(0).integers(0, 256, (batch, 28, 28, 1), np.uint8)
    images = jnp.asarray(images)
    params = model.init(jax.random.key(0), images)["params"]

    def fn(params, images):
        return model.apply({"params": params}, images)

    structure = gp.CoupledChannels(gp.channel_groups(fn, params, images))
    pruned, _ = gp.prune(params, 0.5, structure=structure)
    shrunk = gp.shrink(fn, pruned, images)
    networks = {"dense": (fn, pruned), "shrunk": (shrunk.fn, shrunk.params)}
    table = Table("runtime", "dense, ms", "shrunk, ms", title=f"batches of {batch}")
    for name, runtime in RUNTIMES.items():
        found = measure(runtime, networks, images)
        table.add_row(
            name,
            *(
                own if isinstance(own, str) else f"{own:.3f}"
                for own in (found["dense"], found["shrunk"])
            ),
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
