"""What this machine can run: hardware, libraries, which model files were found where, what is missing, what fits."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from charengine import files
from charengine.config import Profile
from charengine.errors import BadInput, EngineError, MissingDependency
from charengine.machine.databases import database_problems
from charengine.machine.home import find_home
from charengine.machine.places import folder_problems
from charengine.machine.variables import prefect_problems, variable_problems
from charengine.services import sizes

if TYPE_CHECKING:
    from charengine.models.survey import Survey

GIB = 2**30
EMBEDDED_TIMES = (
    "about 2.4 min for one character on two cores: sheet 0.1, train 1.0, sweep 1.2 (measured, benchmarks/results/demo.json)",
)
LIBRARIES = ("torch", "diffusers", "transformers", "lycoris-lora", "accelerate", "safetensors", "prefect", "mlflow")
OPTIONAL = ("gguf", "onnxruntime", "prodigyopt", "prodigy-plus-schedule-free", "bitsandbytes")
FREE_DISK_GIB = 10.0  # a cast of characters with its checkpoints, pictures and training states


@dataclass(frozen=True)
class Machine:
    """Hardware and software; memory and disk in GiB, `gpu` empty without one."""

    system: str
    python: str
    gpu: str
    gpu_gib: float
    gpu_free_gib: float
    driver: str
    cpus: int
    ram_gib: float
    ram_free_gib: float
    home: str
    disk_free_gib: float
    network: str
    libraries: dict[str, str]


@dataclass(frozen=True)
class ModelFile:
    """A model file that was found: the setting it serves, what it is, where, and its size in GiB."""

    field: str
    title: str
    path: str
    origin: str
    gib: float


@dataclass(frozen=True)
class Examination:
    """The doctor's report on a profile; `ready` = it can start now.

    Args:
        found: model files.
        missing: what the profile cannot do without, each with size, licence and how to get it.
        optional: the same for what it could use.
        plan: what this machine will do: how the models fit the memory budget, and what was decided about them.
        room: what the home and each run take.
        times: an estimate of minutes a stage; empty where no GPU is seen or a file is missing.
        problems: what else stands in the way.
    """

    profile: str
    machine: Machine
    found: tuple[ModelFile, ...]
    missing: tuple[str, ...]
    optional: tuple[str, ...]
    plan: tuple[str, ...]
    problems: tuple[str, ...]
    times: tuple[str, ...] = ()
    room: tuple[str, ...] = ()

    @property
    def ready(self) -> bool:
        """Nothing is missing and nothing stands in the way."""
        return not self.missing and not self.problems

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"ready": self.ready}

    def __str__(self) -> str:
        return render(self)


def examine(profile: Profile, called: str = "", refused: Sequence[str] = ()) -> Examination:
    """Look at this machine with a profile's eyes; loads no model and changes nothing.

    Args:
        profile: whose models are looked for.
        called: how the user names the profile.
        refused: what a run of the profile is refused for by itself, which stands with the problems.
    """
    machine, home = look_at_machine(profile), find_home()
    if profile.models.family == "embedded":
        findings, times = _embedded(profile), list(EMBEDDED_TIMES)
    else:
        findings = _full(profile)
        findings.problems += _hardware_problems(profile, machine)
        times = _times(profile, machine, findings.look)
    findings.problems += (
        folder_problems(home.root, "home folder (CHARENGINE_HOME)") or home.problems() or database_problems(home)
    )
    findings.problems += variable_problems() or prefect_problems()
    findings.problems += refused
    if machine.disk_free_gib < FREE_DISK_GIB:
        findings.problems.append(
            f"only {machine.disk_free_gib:.1f} GiB of disk are free at {machine.home}; {FREE_DISK_GIB:g} are advised: "
            "free some, or set CHARENGINE_HOME to a larger disk"
        )
    return Examination(
        called or profile.name,
        machine,
        tuple(findings.found),
        tuple(findings.missing),
        tuple(findings.optional),
        tuple(findings.plan),
        tuple(findings.problems),
        tuple(times),
        tuple(sizes.describe(home)),
    )


def render(report: Examination) -> str:
    """The report as text for a terminal."""
    machine = report.machine
    gpu = (
        f"{machine.gpu}, {machine.gpu_gib:.1f} GiB ({machine.gpu_free_gib:.1f} free), driver {machine.driver}"
        if machine.gpu_gib
        else f"{machine.gpu}, shares the machine's memory"
        if machine.gpu
        else "none"
    )
    lines = [
        f"profile   {report.profile}",
        f"machine   {machine.system}, Python {machine.python}, {machine.cpus} CPUs, {machine.ram_gib:.1f} GiB of memory ({machine.ram_free_gib:.1f} free)",
        f"GPU       {gpu}",
        f"disk      {machine.disk_free_gib:.0f} GiB free at {machine.home}",
        f"network   {machine.network}",
        "libraries " + ", ".join(f"{name} {version}" for name, version in machine.libraries.items()),
    ]
    lines += _section(
        "found", [f"{f.field:10} {f.title}, {f.gib:.2f} GiB: {f.path} ({f.origin})" for f in report.found]
    )
    lines += _section("missing", report.missing)
    lines += _section("not there, and not needed", report.optional)
    lines += _section("problems", report.problems)
    lines += _section("what this machine will do", report.plan)
    lines += _section("how long it will take", report.times)
    lines += _section("room taken (charengine prune says what can go)", report.room)
    lines += [
        "",
        f"profile {report.profile} is ready" if report.ready else f"profile {report.profile} is not ready: see above",
    ]
    return "\n".join(lines)


def _section(title: str, entries: tuple[str, ...] | list[str]) -> list[str]:
    return ["", f"{title}:"] + [f"  {entry}" for entry in entries] if entries else []


# --- machine ---------------------------------------------------------------------------------------------------------


def look_at_machine(profile: Profile) -> Machine:
    """Hardware and library versions; the network is only tried when the profile allows downloads."""
    import psutil

    memory = psutil.virtual_memory()
    home = find_home().root
    gpu, total, free = _gpu()
    return Machine(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        gpu=gpu,
        gpu_gib=total,
        gpu_free_gib=free,
        driver=_driver() if gpu else "",
        cpus=os.cpu_count() or 1,
        ram_gib=memory.total / GIB,
        ram_free_gib=memory.available / GIB,
        home=str(home),
        disk_free_gib=shutil.disk_usage(_existing(home)).free / GIB,
        network=_network(profile.models.allow_downloads),
        libraries=_versions(),
    )


def _gpu() -> tuple[str, float, float]:
    """Name, GiB in all, GiB free; three nothings without a GPU."""
    import torch

    if not torch.cuda.is_available():
        return ("Apple GPU (MPS)", 0.0, 0.0) if torch.backends.mps.is_available() else ("", 0.0, 0.0)
    free, total = torch.cuda.mem_get_info()
    return torch.cuda.get_device_name(), total / GIB, free / GIB


def _driver() -> str:
    import torch

    if not torch.cuda.is_available():
        return "of the system"  # Apple's
    if torch.version.hip:
        return f"ROCm {torch.version.hip}"
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown (nvidia-smi did not answer)"
    return answer.stdout.split("\n")[0].strip()


def _existing(path: Path) -> Path:
    """The path, or its nearest ancestor that exists."""
    return path if files.exists(path) or path == path.parent else _existing(path.parent)


def _network(downloads: bool) -> str:
    if not downloads:
        return "not used (models.allow_downloads is off)"
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        return "offline (HF_HUB_OFFLINE=1)"
    try:
        with socket.create_connection(("huggingface.co", 443), timeout=3):
            return "online (huggingface.co answers)"
    except OSError:
        return "offline (huggingface.co does not answer)"


def _versions() -> dict[str, str]:
    versions = {}
    for name in LIBRARIES + OPTIONAL:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            if name in LIBRARIES:
                versions[name] = "not installed"
    return versions


# --- models ----------------------------------------------------------------------------------------------------------


@dataclass
class _Findings:
    """What was found of a family; `look` is the survey of the full-size one."""

    found: list[ModelFile] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    optional: list[str] = field(default_factory=list)
    plan: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    look: Survey | None = None


def _embedded(profile: Profile) -> _Findings:
    """The packaged family needs nothing; loading it checks its folders and reads no weights."""
    from charengine.models import load

    try:
        load(profile)
    except MissingDependency as error:
        return _Findings(missing=str(error).splitlines())
    except BadInput as error:
        return _Findings(problems=str(error).splitlines())
    return _Findings(plan=["embedded family: under 1 GiB, no GPU needed"])


def _full(profile: Profile) -> _Findings:
    """The same survey that `run` acts on."""
    from charengine.models import locate, survey

    problems = locate.missing_folders(profile.models)
    try:
        look = survey.survey(profile)
    except EngineError as error:
        return _Findings(problems=problems + str(error).splitlines())
    optional = [entry.describe() for entry in look.stock.missing.values() if not entry.need.required]
    optional += [f"not taken: {entry.describe()}" for entry in look.stock.rejected]
    return _Findings(
        [_model_file(entry) for entry in look.stock.found.values()],
        list(look.missing),
        optional,
        [*(look.plan.describe() if look.plan else []), *look.notes],
        problems + [line for problem in look.problems for line in str(problem).splitlines()],
        look,
    )


def _times(profile: Profile, machine: Machine, look: Survey | None) -> list[str]:
    """An estimate, where there is a GPU and its plan is known."""
    from charengine.services.estimate import card_called, describe, estimate, measured_card

    if look is None or look.plan is None or not machine.gpu:
        return []
    card = card_called(machine.gpu) or measured_card()
    return [] if card is None else describe(estimate(profile, look, card), card)


def _model_file(found: Any) -> ModelFile:
    from charengine.models.files import weight_files

    size = sum(file.stat().st_size for file in weight_files(found.path)) / GIB
    return ModelFile(found.need.field, found.identity.title, str(found.path), found.origin, size)


def _hardware_problems(profile: Profile, machine: Machine) -> list[str]:
    if not machine.gpu and profile.models.device in ("auto", "cuda"):
        return [
            f"no GPU is seen by torch {machine.libraries['torch']}; the profile needs one of {profile.budget_gib:g} GiB (check the driver and that torch has CUDA)"
        ]
    if machine.gpu_gib and profile.budget_gib > machine.gpu_gib + 0.5:
        return [
            f"the budget is {profile.budget_gib:g} GiB and {machine.gpu} has {machine.gpu_gib:.1f}: --set budget_gib={int(machine.gpu_gib)}"
        ]
    return []
