"""Alert rules and dashboard: each query parses, and names metrics that are exported."""

import json
import re
from pathlib import Path

import yaml

from .report import DEPLOY, ROOT, Failure, Report, expect, need, run

RULES, TESTS = DEPLOY / "prometheus-rules.yaml", DEPLOY / "prometheus-rules.test.yaml"
METRIC = re.compile(r"\b(webhook_bridge_\w+|matrix_sdk_postgres_\w+)\b")
# What Grafana replaces in a query.
VARIABLES = {"$__rate_interval": "5m", "$__range": "1h", "$job": ".*", "$instance": ".*"}


def check(report: Report, scratch: Path):
    report.check("alert rules: promtool check", rules_parse)
    report.check("alert rules: promtool test, each alert fires and is silent when it should", rules_fire)
    report.check("dashboard: structure", dashboard_structure)
    report.check("dashboard: each query parses", dashboard_parses, scratch)
    report.check("rules and dashboard name documented metrics", names)


def promtool(*arguments):
    run(need("promtool", "apt-get install prometheus"), *arguments)


def rules_parse():
    promtool("check", "rules", "--lint=all", "--lint-fatal", RULES)


def rules_fire():
    promtool("test", "rules", TESTS)
    rules = yaml.safe_load(RULES.read_text())["groups"][0]["rules"]
    fired = {
        test["alertname"] for case in yaml.safe_load(TESTS.read_text())["tests"]
        for test in case["alert_rule_test"] if test.get("exp_alerts")
    }
    never = {rule["alert"] for rule in rules} - fired
    expect(not never, f"no test lets these fire: {sorted(never)}")


def dashboard() -> dict:
    return json.loads((DEPLOY / "grafana-dashboard.json").read_text())


def queries() -> list[str]:
    return [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]


def dashboard_structure():
    panels = dashboard()["panels"]
    expect(len({panel["id"] for panel in panels}) == len(panels), "two panels have the same id")
    taken = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        expect(at["x"] + at["w"] <= 24 and not cells & taken, f"{panel['title']} overlaps another panel")
        taken |= cells
        expect(panel["targets"] and panel["datasource"]["uid"] == "${datasource}", f"{panel['title']} has no query")
    names = {variable["name"] for variable in dashboard()["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]\w*)", json.dumps(panels)))
    expect(used <= names, f"no such variables: {used - names}")


def resolved(query: str, **values: str) -> str:
    """The query as Grafana sends it."""
    for name, value in (VARIABLES | {f"$__{name}": value for name, value in values.items()}).items():
        query = query.replace(name, value)
    return query


def dashboard_parses(scratch: Path):
    rules = [{"record": f"query_{number}", "expr": resolved(query)} for number, query in enumerate(queries())]
    file = scratch / "dashboard.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", file)


def documented() -> set[str]:
    """The names in the tables of the bridge's README and of docs/operations.md; of a histogram, those of its series."""
    readme = (ROOT / "examples/webhook_bridge/README.md").read_text()
    (section,) = [part for part in readme.split("\n## ") if part.startswith("Health\n")]
    found = set()
    for line in section.splitlines():
        if line.startswith("| `"):
            for name in re.findall(r"`([a-z_]+)(?:\{[^}]*\})?`", line.split("|")[1]):
                found.add("webhook_bridge_" + name.removeprefix("webhook_bridge_"))
    found |= set(re.findall(r"^\| `(matrix_sdk_postgres_\w+)`", (ROOT / "docs/operations.md").read_text(), re.M))
    if not found:
        raise Failure("the README's table of metrics was not found")
    return found | {name + end for name in found if name.endswith("_seconds") for end in ("_bucket", "_sum", "_count")}


def used_metrics() -> set[str]:
    """The metrics that rules and dashboard name."""
    rules = yaml.safe_load(RULES.read_text())["groups"][0]["rules"]
    texts = [rule["expr"] for rule in rules] + queries()
    for text in texts:
        expect(METRIC.search(text), f"{text} names no metric of the bridge")
    return {name for text in texts for name in METRIC.findall(text)}


def names():
    unknown = used_metrics() - documented()
    expect(not unknown, f"not documented: {sorted(unknown)}")
