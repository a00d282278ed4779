"""The servers of a studio with many machines, as its service managers keep them: PostgreSQL, Redis, SeaweedFS for S3, Prefect, MLflow.

Each has a folder and a port of its own, and is started again when it ends. All addresses are of this machine.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

HOST = "127.0.0.1"
PORTS = ("prefect", "mlflow", "postgres", "redis", "master", "volume", "filer", "s3")
BUCKET = "charengine"
KEY, SECRET = "studio", "studio-secret"  # of the S3 server below, which is fresh and reached from this machine alone
AGAIN_SECONDS = 1.5  # before what has ended is started again
START_SECONDS = 240.0
POSTGRES = ("--no-sync", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C")


@dataclass
class Ports:
    """One for each server; SeaweedFS takes those 10,000 above its own too."""

    first: int

    def __getattr__(self, name: str) -> int:
        if name not in PORTS:
            raise AttributeError(name)
        return self.first + PORTS.index(name)

    @property
    def all(self) -> list[int]:
        """Every one of them."""
        return [self.first + number for number in range(len(PORTS))]


@dataclass
class Server:
    """A command that is kept running.

    Args:
        name: in the tables.
        command: and its arguments.
        environment: of the process.
        log: its output.
        ready: whether it answers.
    """

    name: str
    command: list[str]
    environment: Mapping[str, str]
    log: Path
    ready: Callable[[], bool]
    popen: subprocess.Popen[bytes] | None = None
    start_at: float = 0.0


class Restarted(Protocol):
    """What is started again a while after it has ended; its own start sets `start_at` back to 0."""

    popen: subprocess.Popen[bytes] | None
    start_at: float


def is_due(ended: Restarted) -> bool:
    """Whether it ended long enough ago; that it ended is noted the first time it is asked."""
    if not ended.popen or ended.popen.poll() is None:
        return False
    if not ended.start_at:
        ended.start_at = time.monotonic() + AGAIN_SECONDS
        return False
    return time.monotonic() >= ended.start_at


@dataclass
class Servers:
    """All of them, in the order in which they are started.

    Args:
        folder: of databases and logs.
        ports: of each.
    """

    folder: Path
    ports: Ports
    all: list[Server] = field(default_factory=list)
    _ending: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    # --- addresses ---

    @property
    def prefect_api(self) -> str:
        """Prefect's API."""
        return f"http://{HOST}:{self.ports.prefect}/api"

    @property
    def mlflow(self) -> str:
        """MLflow."""
        return f"http://{HOST}:{self.ports.mlflow}"

    @property
    def store(self) -> str:
        """The store."""
        return f"s3://{BUCKET}/store"

    def database(self, name: str, driver: str = "") -> str:
        """A database's URL."""
        return f"postgresql{driver}://postgres@{HOST}:{self.ports.postgres}/{name}"

    @property
    def credentials(self) -> dict[str, str]:
        """What a client of the store is told."""
        return {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL_S3": f"http://{HOST}:{self.ports.s3}",
        }

    @property
    def for_machines(self) -> dict[str, str]:
        """The three addresses and the credentials that a machine is given."""
        named = {
            "PREFECT_API_URL": self.prefect_api,
            "MLFLOW_TRACKING_URI": self.mlflow,
            "CHARENGINE_STORE": self.store,
        }
        return named | self.credentials

    # --- starting ---

    def start(self) -> None:
        """Start what there is in this order, each once the one before answers, and keep it running."""
        (self.folder / "home").mkdir(parents=True, exist_ok=True)
        if taken := [port for port in self.ports.all if _listens(port)]:  # another's, who would answer in place of ours
            raise RuntimeError(f"ports {taken} are taken: end what listens there")
        self._ending.clear()
        self.all = []
        try:
            self._start_all(self._postgres(), self._redis(), self._s3())
            self._make_databases()
            self._start_all(self._prefect(), self._mlflow())
        except BaseException:
            self.stop()
            raise
        self._thread = threading.Thread(target=self._keep_running, name="servers", daemon=True)
        self._thread.start()

    def _start_all(self, *servers: Server) -> None:
        for server in servers:
            self.all.append(server)
            self._begin(server)
        for server in servers:
            self._wait_for(server)

    def kill(self, name: str) -> None:
        """Kill a server; it is started again."""
        os.kill(self.pid_of(name), signal.SIGKILL)

    def stop(self, gently: bool = True) -> None:
        """End them, the last first; gently, so that each leaves its files in order."""
        self._ending.set()
        if self._thread:
            self._thread.join()
        for server in reversed(self.all):
            if server.popen is None:
                continue
            if gently and server.popen.poll() is None:
                # PostgreSQL waits for its clients unless it is told so
                server.popen.send_signal(signal.SIGINT if server.name == "PostgreSQL" else signal.SIGTERM)
                with suppress(subprocess.TimeoutExpired):
                    server.popen.wait(20)
            self._end_group(server)
            server.popen.wait()

    def pid_of(self, name: str) -> int:
        """The process of a server; 0 while it does not run."""
        server = next(server for server in self.all if server.name == name)
        return server.popen.pid if server.popen and server.popen.poll() is None else 0

    def answers(self, name: str) -> bool:
        """Whether a server answers."""
        return next(server for server in self.all if server.name == name).ready()

    def _keep_running(self) -> None:
        while not self._ending.wait(0.2):
            for server in self.all:
                if is_due(server):
                    self._end_group(server)
                    self._begin(server)

    def _begin(self, server: Server) -> None:
        with server.log.open("ab") as output:
            server.popen = subprocess.Popen(
                server.command,
                env={**_bare_environment(), **server.environment},
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        server.start_at = 0.0

    def _end_group(self, server: Server) -> None:
        assert server.popen
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(server.popen.pid, signal.SIGKILL)

    def _wait_for(self, server: Server) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not server.ready():
            if (server.popen and server.popen.poll() is not None) or time.monotonic() > deadline:
                raise RuntimeError(f"{server.name} did not start:\n{server.log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.2)

    # --- each ---

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def _postgres(self) -> Server:
        data = self.folder / "postgres"
        if not data.exists():
            data.mkdir()
            _give_to_postgres(data)
            subprocess.run(
                [*_as_postgres(), _program("initdb"), "-D", f"{data}", *POSTGRES], check=True, stdout=subprocess.DEVNULL
            )
        port = self.ports.postgres
        options = ["-D", f"{data}", "-p", f"{port}", "-c", f"listen_addresses={HOST}", "-c", "unix_socket_directories="]
        options += ["-c", "max_connections=200"]
        return Server(
            "PostgreSQL",
            [*_as_postgres(), _program("postgres"), *options],
            {},
            self._log("postgres"),
            self._postgres_answers,
        )

    def _postgres_answers(self) -> bool:
        command = [_program("pg_isready"), "-q", "-h", HOST, "-p", f"{self.ports.postgres}"]
        return subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode == 0

    def _make_databases(self) -> None:
        import psycopg2

        connection = psycopg2.connect(self.database("postgres"))
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("SELECT datname FROM pg_database")
            there = {name for (name,) in cursor.fetchall()}
            for name in ("prefect", "mlflow"):
                if name not in there:
                    cursor.execute(f"CREATE DATABASE {name}")
        connection.close()

    def _redis(self) -> Server:
        data = self.folder / "redis"
        data.mkdir(exist_ok=True)
        port = self.ports.redis
        command = [_program("redis-server"), "--port", f"{port}", "--bind", HOST, "--dir", f"{data}"]
        command += ["--appendonly", "yes", "--save", ""]
        return Server("Redis", command, {}, self._log("redis"), lambda: _listens(port))

    def _s3(self) -> Server:
        data = self.folder / "s3"
        data.mkdir(exist_ok=True)
        ports = self.ports
        command = [_program("weed"), "server", f"-dir={data}", f"-ip={HOST}", f"-ip.bind={HOST}"]
        command += [f"-master.port={ports.master}", f"-volume.port={ports.volume}", "-filer"]
        command += [f"-filer.port={ports.filer}", "-s3", f"-s3.port={ports.s3}", "-volume.max=50"]
        command += ["-master.volumeSizeLimitMB=256", "-s3.port.iceberg=0", "-s3.port.lance=0"]
        accounts = self.folder / "s3.json"
        keys = [{"accessKey": KEY, "secretKey": SECRET}]
        accounts.write_text(json.dumps({"identities": [{"name": "studio", "credentials": keys, "actions": ["Admin"]}]}))
        return Server("S3", [*command, f"-s3.config={accounts}"], {}, self._log("s3"), self._s3_answers)

    def _s3_answers(self) -> bool:
        """Whether it takes a file and gives it back: it listens some seconds earlier."""
        import boto3
        from botocore.config import Config

        config = Config(connect_timeout=2, read_timeout=4, retries={"max_attempts": 1})
        client = boto3.client(
            "s3",
            endpoint_url=self.credentials["AWS_ENDPOINT_URL_S3"],
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
            config=config,
        )
        try:
            with suppress(client.exceptions.BucketAlreadyExists, client.exceptions.BucketAlreadyOwnedByYou):
                client.create_bucket(Bucket=BUCKET)
            client.put_object(Bucket=BUCKET, Key="health", Body=b"1")
            return bool(client.get_object(Bucket=BUCKET, Key="health")["Body"].read() == b"1")
        except Exception:  # whatever its library raises: it does not answer yet
            return False

    def _prefect(self) -> Server:
        redis = f"redis://{HOST}:{self.ports.redis}"
        environment = {
            "CHARENGINE_HOME": f"{self.folder / 'home'}",
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": self.database("prefect", "+asyncpg"),
            "PREFECT_SERVER_EVENTS_MESSAGING_BROKER": "prefect_redis.messaging",
            "PREFECT_SERVER_EVENTS_MESSAGING_CACHE": "prefect_redis.messaging",
            "PREFECT_SERVER_EVENTS_CAUSAL_ORDERING": "prefect_redis.ordering",
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect_redis.lease_storage",
            "PREFECT_REDIS_MESSAGING_URL": f"{redis}/0",
            "PREFECT_SERVER_DOCKET_URL": f"{redis}/1",
        }
        command = [sys.executable, "-m", "deployments.server", "--port", f"{self.ports.prefect}"]
        return Server(
            "Prefect", command, environment, self._log("prefect"), lambda: _answers(f"{self.prefect_api}/health")
        )

    def _mlflow(self) -> Server:
        command = [sys.executable, "-m", "deployments.mlflow_server", "--workers", "1"]
        command += ["--host", HOST, "--port", f"{self.ports.mlflow}"]
        command += ["--backend-store-uri", self.database("mlflow"), "--artifacts-destination", f"s3://{BUCKET}/mlflow"]
        environment = {
            "CHARENGINE_HOME": f"{self.folder / 'home'}",
            **self.credentials,
            "MLFLOW_S3_ENDPOINT_URL": self.credentials["AWS_ENDPOINT_URL_S3"],
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        return Server("MLflow", command, environment, self._log("mlflow"), lambda: _answers(f"{self.mlflow}/health"))


def missing_programs() -> list[str]:
    """What must be installed for these servers and is not."""
    missing = [name for name in ("initdb", "postgres", "pg_isready", "redis-server", "weed") if not _found(name)]
    for module in ("psycopg2", "boto3", "s3fs", "prefect_redis"):
        try:
            __import__(module)
        except ImportError:
            missing.append(module)
    return missing


def _found(name: str) -> str:
    """Beside this Python, on the path, or where Debian keeps PostgreSQL's."""
    places = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    places += [str(path) for path in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    return shutil.which(name, path=os.pathsep.join(places)) or ""


def _program(name: str) -> str:
    if not (path := _found(name)):
        raise SystemExit(f"{name} is not installed (docs/howto/kills.md says from where)")
    return path


def _as_postgres() -> list[str]:
    """PostgreSQL refuses to run as root."""
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []


def _give_to_postgres(folder: Path) -> None:
    folder.chmod(0o700)
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres", "postgres")


def _bare_environment() -> dict[str, str]:
    foreign = ("PREFECT_", "MLFLOW_", "CHARENGINE_", "AWS_")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)}


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection((HOST, port), 1.0):
        return True
    return False


def _answers(url: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(url, timeout=4) as response:
        return bool(response.status == 200)
    return False
