"""Machines of a test cluster: network namespaces of Linux, one Ray node in each.

Every machine has an address of its own on a switch of its own (a bridge in one more namespace),
so that nothing of it is seen from outside, and a link that can be cut.  What they share is the
disk, the kernel and the CPUs.  Needs root and ``ip`` of iproute2.
"""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from hostsim.core.errors import WorkerError

PORT = 6379
START_S = 120.0  # for `ray start` on one machine: 3-4 s if it is idle
END_S = 10.0  # for killed processes to go
OBJECT_STORE_BYTES = 100 << 20
# A node whose link is cut is dead after at most 7.5 s: three checks that each wait 2 s for an
# answer, half a second apart.  By Ray's own values that is a minute.
HEALTH_CHECKS = (
    '{"health_check_initial_delay_ms": 500, "health_check_period_ms": 500,'
    ' "health_check_timeout_ms": 2000, "health_check_failure_threshold": 3}'
)


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise WorkerError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def why_not() -> str:
    """Return why there can be no namespaces here, or nothing."""
    if shutil.which("ip") is None:
        return "the command ip (iproute2) is missing"
    name = f"fleet-{secrets.token_hex(3)}"
    try:
        _ip("netns", "add", name)
    except WorkerError as error:
        return f"no network namespaces can be made: {error}"
    try:
        _ip("-n", name, "link", "add", "name", "sw", "type", "bridge")
        _ip("-n", name, "link", "add", "name", "eth0", "type", "veth", "peer", "name", "p0")
    except WorkerError as error:
        return f"no bridges or links can be made: {error}"
    finally:
        _ip("netns", "del", name)
    return ""


class Machines:
    """A head node and others, one namespace each; machine 0 is the head."""

    def __init__(self, cpus: int = 1) -> None:
        self.cpus = cpus
        self.address = f"{self._address(0)}:{PORT}"
        self._name = f"fleet-{secrets.token_hex(3)}"
        self._nr = 0
        self._files = tempfile.mkdtemp(prefix="fleet-")  # short: sockets lie in it
        self._environment = {
            **os.environ,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(16),
        }
        self._environment.pop("RAY_ADDRESS", None)

    def __enter__(self) -> "Machines":
        try:
            _ip("netns", "add", self._switch())
            _ip("-n", self._switch(), "link", "add", "name", "sw", "type", "bridge")
            _ip("-n", self._switch(), "link", "set", "sw", "up")
            self.add()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.close()

    def _switch(self) -> str:
        return f"{self._name}-sw"

    def _namespace(self, machine: int) -> str:
        return f"{self._name}-{machine}"

    @staticmethod
    def _address(machine: int) -> str:
        return f"10.83.0.{machine + 1}"

    def addresses(self) -> list[str]:
        """Return the addresses of all machines."""
        return [self._address(machine) for machine in range(self._nr)]

    def add(self, environment: dict[str, str] | None = None) -> int:
        """Start one more machine and Ray on it; return its number."""
        machine, self._nr = self._nr, self._nr + 1
        inside, switch = self._namespace(machine), self._switch()
        _ip("netns", "add", inside)
        port = f"p{machine}"
        link = ("link", "add", "name", "eth0", "type", "veth", "peer", "name", port)
        _ip("-n", inside, *link, "netns", switch)
        _ip("-n", switch, "link", "set", port, "master", "sw", "up")
        _ip("-n", inside, "addr", "add", f"{self._address(machine)}/24", "dev", "eth0")
        for name in ("lo", "eth0"):
            _ip("-n", inside, "link", "set", name, "up")
        self._start_ray(machine, environment or {})
        return machine

    def _start_ray(self, machine: int, environment: dict[str, str]) -> None:
        where = [
            "--head",
            f"--port={PORT}",
            "--include-dashboard=false",
            f"--temp-dir={self._files}",
        ]
        where.append(f"--system-config={HEALTH_CHECKS}")
        if machine > 0:
            where = [f"--address={self.address}"]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *where]
        command += [f"--node-ip-address={self._address(machine)}", f"--num-cpus={self.cpus}"]
        command += [f"--object-store-memory={OBJECT_STORE_BYTES}", "--disable-usage-stats"]
        if machine > 0:  # files of its own at the same place: `ip netns exec` has its own mounts
            mount = f'mount -t tmpfs tmpfs {self._files} && exec "$@"'
            command = ["sh", "-c", mount, "sh", *command]
        log = Path(f"{self._files}-{machine}.log")
        with log.open("w") as file:
            process = self.run(machine, command, environment, stdout=file, stderr=file)
            try:
                failed = process.wait(START_S) != 0
            except subprocess.TimeoutExpired:
                process.kill()
                failed = True
        text = log.read_text()
        log.unlink()
        if failed:
            raise WorkerError(f"ray start on machine {machine}: {text[-1000:].strip()}")

    def run(
        self,
        machine: int,
        command: Sequence[str],
        environment: dict[str, str] | None = None,
        **options: object,
    ) -> "subprocess.Popen[str]":
        """Start a command on a machine."""
        argv = ["ip", "netns", "exec", self._namespace(machine), *command]
        inherited = {**self._environment, **(environment or {})}
        return subprocess.Popen(argv, env=inherited, text=True, **options)  # type: ignore[call-overload, no-any-return]

    def fleet(
        self, *arguments: str, environment: dict[str, str] | None = None
    ) -> "subprocess.Popen[str]":
        """Start ``fleet run`` on the head node, joined to the cluster."""
        command = [sys.executable, "-P", "-m", "fleet", "run", *arguments]
        command += ["--address", self.address]
        pipe = subprocess.PIPE
        # Ray lets workers import from the driver's folder, which is on the same disk here.
        elsewhere = self._files
        return self.run(0, command, environment, stdout=pipe, stderr=pipe, cwd=elsewhere)

    def set_link(self, machine: int, state: str) -> None:
        """Cut a machine's link (``down``) or mend it (``up``); its processes go on."""
        _ip("-n", self._switch(), "link", "set", f"p{machine}", state)

    def processes(self, machine: int) -> list[int]:
        """Return what runs on a machine."""
        return [int(pid) for pid in _ip("netns", "pids", self._namespace(machine)).split()]

    def close(self) -> None:
        """End everything on the machines and remove them."""
        for machine in range(self._nr):
            with contextlib.suppress(WorkerError):
                self._end_processes(machine)
                _ip("netns", "del", self._namespace(machine))
        self._nr = 0
        with contextlib.suppress(WorkerError):
            _ip("netns", "del", self._switch())
        shutil.rmtree(self._files, ignore_errors=True)

    def _end_processes(self, machine: int) -> None:
        give_up_s = time.monotonic() + END_S
        while (left := self.processes(machine)) and time.monotonic() < give_up_s:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
