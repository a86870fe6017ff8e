"""Linters and schemas, and that the files agree with the bridge and with each other."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import yaml

from .report import DEPLOY, ROOT, Report, expect, need, run

README = (ROOT / "examples/webhook_bridge/README.md").read_text()
UNITS = ["webhook-bridge.service", "webhook-bridge-migrate.service"]


def check(report: Report, scratch: Path):
    report.not_tested("kubernetes.yaml in a cluster", "there is none; scripts/e2e --only rolling_update has its order of a rollout")
    report.not_tested("compose.yaml with its images", "no image is built here; scripts/check-guide does, with a Docker daemon")
    report.not_tested("the systemd units as services", "this needs systemd as process 1")
    report.not_tested("the dashboard in Grafana", "Grafana is not installed")
    scripts = sorted(DEPLOY.glob("*.sh"))
    report.check("shellcheck: scripts", lambda: run("shellcheck", *scripts))
    report.check("hadolint: Dockerfile", lambda: run("hadolint", "--failure-threshold=style", DEPLOY / "Dockerfile"))
    report.check("compose.yaml: JSON schema", lambda: run(
        "check-jsonschema", "--builtin-schema", "vendor.compose-spec", *DEPLOY.glob("compose*.yaml")))
    report.check("compose.yaml: docker compose config", compose_config, scratch)
    report.check("compose.yaml: hardened services, no state in the bridge", compose_is_hardened)
    report.check("kubernetes.yaml: JSON schemas of Kubernetes", lambda: run(
        "kubernetes-validate", "--strict", DEPLOY / "kubernetes.yaml"))
    report.check("kubernetes.yaml: a standby does not hold a rollout up, no state", kubernetes_rollout)
    report.check("kubernetes.yaml: YAML", lambda: run("yamllint", "--strict", "-d", YAMLLINT, *DEPLOY.glob("*.yaml")))
    report.check("systemd units: systemd-analyze verify", units_verify, scratch)
    report.check("systemd units: systemd-analyze security", units_security)
    report.check("systemd units: exit codes that a restart does not help with", units_exit_codes)
    report.check("systemd units: the migration waits for the database, and ends with other errors", units_migrate, scratch)
    report.check("the settings exist", settings_exist)
    report.check(".env.example names the settings that compose.yaml overrides", settings_overridden)
    report.check("make-secrets.sh makes all secrets, once", secrets, scratch)


YAMLLINT = "{extends: default, rules: {line-length: {max: 130}, document-start: disable, comments: disable, " \
    "octal-values: disable, indentation: {indent-sequences: whatever}, truthy: {check-keys: false}}}"


def compose_config(scratch: Path):
    """With the example's settings, as a user makes them."""
    copy = scratch / "compose"
    shutil.copytree(DEPLOY, copy)
    shutil.copy(copy / ".env.example", copy / ".env")
    run("docker-compose", "--project-directory", copy, "config", "--quiet")
    both = ["--file", copy / "compose.yaml", "--file", copy / "compose.api.yaml"]
    resolved = yaml.safe_load(run("docker-compose", *both, "config"))["services"]["bridge"]
    ports = [(port.get("host_ip"), port["published"]) for port in resolved["ports"]]
    expect(ports == [("127.0.0.1", "9090"), ("127.0.0.1", "9091")], f"ports: {ports}")
    unset = [line for line in (copy / ".env").read_text().splitlines() if not line.startswith("BACKUP_RECIPIENT")]
    (copy / ".env").write_text("\n".join(unset))
    said = run("docker-compose", "--project-directory", copy, "config", "--quiet", fails=True)
    expect("BACKUP_RECIPIENT" in said, said)


def compose_is_hardened():
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    for name, service in services.items():
        expect(service["read_only"] and service["cap_drop"] == ["ALL"], f"{name} is writable or privileged")
        expect("no-new-privileges:true" in service["security_opt"], f"{name} may gain privileges")
        expect(not {"privileged", "cap_add", "user"} & set(service), f"{name} has other privileges")
    bridge = services["bridge"]
    expect(not {"volumes", "tmpfs"} & set(bridge), "the bridge has a volume")
    expect(all(port.startswith("127.0.0.1:") for port in bridge["ports"]), "a port is public")


def kubernetes_rollout():
    parts = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
    expect("PersistentVolumeClaim" not in [part["kind"] for part in parts], "there is a volume claim")
    for part in parts:
        if part["kind"] not in ("Deployment", "Job"):
            continue
        pod = part["spec"]["template"]["spec"]
        expect(all("secret" in volume for volume in pod["volumes"]), "there is a volume that is not a secret")
        expect(pod["securityContext"]["runAsNonRoot"], "a pod may run as root")
        for container in pod["containers"]:
            security = container["securityContext"]
            expect(security["readOnlyRootFilesystem"] and security["capabilities"] == {"drop": ["ALL"]}, "privileges")
    expect(deployment()["replicas"] == 2, "there is no standby")
    for probe, path in probes().items():
        expect(path == "/healthz", f"{probe} asks {path}, to which a standby responds with 503")


def deployment() -> dict:
    parts = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    (found,) = [part["spec"] for part in parts if part["kind"] == "Deployment"]
    return found


def probes() -> dict[str, str]:
    """The path of each probe of the bridge."""
    (container,) = deployment()["template"]["spec"]["containers"]
    return {name: container[name]["httpGet"]["path"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}


def units_verify(scratch: Path):
    """In a root directory, since the program is not installed here."""
    need("systemd-analyze", "install systemd")
    for name in UNITS:
        text = (DEPLOY / name).read_text().replace("/usr/local/bin/webhook_bridge", "/bin/true")
        (scratch / name).write_text(text)
    said = run("systemd-analyze", "verify", "--man=no", *[scratch / name for name in UNITS])
    expect(not said.strip(), said)


def units_security():
    need("systemd-analyze", "install systemd")
    for name in UNITS:
        # 1.5 of 10; without hardening it is 9.2.
        run("systemd-analyze", "security", "--offline=true", "--threshold=15", "--no-pager", DEPLOY / name)


def units_exit_codes():
    (documented,) = re.findall(r"`(RestartPreventExitStatus=[0-9 ]+)`", README)
    expect(documented in (DEPLOY / UNITS[0]).read_text(), f"README.md has {documented}")


def units_migrate(scratch: Path):
    """The command of the unit, with a program in the bridge's place that ends with these codes."""
    (line,) = re.findall(r"^ExecStart=(.*)$", (DEPLOY / UNITS[1]).read_text(), re.M)
    program, left = scratch / "ends-with", scratch / "codes"
    program.write_text(f'#!/bin/sh\nread -r code <{left}\nsed --in-place 1d {left}\nexit "$code"\n')
    program.chmod(0o755)
    line = line.replace("/usr/local/bin/webhook_bridge", str(program)).replace("sleep 5", "sleep 0").replace("$$", "$")
    for codes, expected in (([0], 0), ([1, 1, 0], 0), ([5, 0], 5), ([1, 2, 0], 2)):
        left.write_text("".join(f"{code}\n" for code in codes))
        ended = subprocess.run(shlex.split(line), timeout=10).returncode
        expect(ended == expected, f"after {codes} it ended with {ended}")


def settings_exist():
    """Each setting of the bridge that the files name is one that the program reads."""
    source = (ROOT / "examples/webhook_bridge/src/config/args.rs").read_text()
    known = set(re.findall(r'env = "(\w+)"', source)) | {"RUST_LOG"}
    for name in [".env.example", "compose.yaml", "compose.api.yaml", "kubernetes.yaml", *UNITS]:
        named = re.findall(r"\b((?:MATRIX|BRIDGE|STORE|WEBHOOK|DATABASE)_[A-Z_]+)\b", (DEPLOY / name).read_text())
        expect(named, f"{name} names no setting")
        unknown = set(named) - known
        expect(not unknown, f"{name}: no such settings: {', '.join(sorted(unknown))}")


def settings_overridden():
    comment = "".join(line for line in (DEPLOY / ".env.example").open() if line.startswith("#"))
    bridge = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["bridge"]
    missing = [name for name in bridge["environment"] if not name.endswith("_FILE") and name not in comment]
    expect(not missing, f"missing: {missing}")


def secrets(scratch: Path):
    made = make_secrets(scratch / "secrets-check")
    wanted = [
        name for file in DEPLOY.glob("compose*.yaml") for name in yaml.safe_load(file.read_text())["secrets"]
    ]
    missing = [name for name in wanted if not (made / name).read_text().strip()]
    expect(not missing, f"missing: {missing}")
    before = {file.name: file.read_bytes() for file in made.iterdir()}
    run("bash", made.parent / "make-secrets.sh")
    expect(before == {file.name: file.read_bytes() for file in made.iterdir()}, "the second run changed a secret")
    expect(made.stat().st_mode & 0o777 == 0o700, "others may enter secrets/")


def make_secrets(directory: Path, host: str = "localhost") -> Path:
    """A copy of the deployment in `directory`, with its secrets."""
    shutil.copytree(DEPLOY, directory, ignore=shutil.ignore_patterns("secrets", ".env"))
    run("bash", directory / "make-secrets.sh", host, input="a password with spaces and 'quotes'\n")
    return directory / "secrets"
