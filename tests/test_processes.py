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


def start_worker(log, *arguments):
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("JAX_", "XLA_"))
    }
    with log.open("w") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.distributed_worker", *arguments],
            cwd=ROOT,
            env={**inherited, "JAX_PLATFORMS": "cpu"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def test_masks_are_the_same_on_two_processes(tmp_path):
    address = free_address()
    logs = [tmp_path / f"{process}.log" for process in range(2)]
    workers = [
        start_worker(log, address, str(process)) for process, log in enumerate(logs)
    ]
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            for worker in workers:
                worker.wait(TIMEOUT)
    finally:
        for worker in workers:
            worker.kill()
    codes = [worker.wait() for worker in workers]
    assert codes == [0, 0], "\n\n".join(log.read_text() for log in logs)
