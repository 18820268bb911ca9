"""The same masks on devices of several processes, as on the hosts of a cluster."""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
TIMEOUT = 180  # seconds


def free_address():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


def start(log, *arguments):
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("JAX_", "XLA_"))
    }
    collectives = {"JAX_PLATFORMS": "cpu", "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}
    with log.open("w") as output:
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env={**inherited, **collectives, "PYTHONPATH": str(ROOT)},
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def run_both(tmp_path, *arguments):
    """What each of two processes prints, of which the last argument is the number."""
    logs = [tmp_path / f"{process}.log" for process in range(2)]
    processes = [start(log, *arguments, str(i)) for i, log in enumerate(logs)]
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            for process in processes:
                process.wait(TIMEOUT)
    finally:
        for process in processes:
            process.kill()
    texts = [log.read_text() for log in logs]
    assert [process.wait() for process in processes] == [0, 0], "\n\n".join(texts)
    return texts


def test_masks_are_the_same_on_two_processes(tmp_path):
    run_both(tmp_path, "-m", "tests.distributed_worker", free_address())


def test_the_example_of_the_documentation_runs(tmp_path):
    texts = run_both(tmp_path, "docs/several_hosts.py", free_address(), "2")
    for process, text in enumerate(texts):
        assert f"process {process} of 2: 3,277 of 32,768 are kept\n" in text
