"""What deploy/test/prometheus.sh asks files and a running Prometheus. Python's standard library only.

    prometheus_check.py -   dashboard FILE           JSON, ids, places, units, what a panel must have; no job by name
    prometheus_check.py -   runbook RULES RUNBOOK    every alert has its section, and every section an alert; no job by name
    prometheus_check.py URL healthy JOB              all targets up, two of them of that job, no alert fires
    prometheus_check.py URL firing ALERT INSTANCE…   waits until the alert fires for each of these
    prometheus_check.py URL resolved ALERT           waits until it does not any more
    prometheus_check.py URL queries FILE JOB         every rule and every query of the dashboard evaluates, with data
"""

import json
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

# Grafana's variables, as it would replace them: https://grafana.com/docs/grafana/latest/dashboards/variables/
VARIABLES = {"$instance": ".*", "$__rate_interval": "10s", "$__range": "5m"}
# Queries without data that are in order, with the reason. All others must have some.
MAY_BE_EMPTY = {
    "ingestd_auth_failures_total": "the nodes under test have no keys: no request is refused for one",
    "instance:ingestd_version_changed:info": "the nodes under test are of one version",
    "instance:ingestd_journal_time_to_full:seconds": "a journal that did not grow by a segment has no time to full",
}
UNITS = {"none", "short", "s", "bytes", "Bps", "eps", "ops", "reqps", "percentunit"}  # ids of Grafana's value formats
GRID_COLUMNS = 24


def main(url, verb, *arguments):
    checks = {
        "dashboard": lambda file: dashboard(load(file)),
        "runbook": runbook,
        "healthy": lambda job: wait(60, lambda: healthy(url, job)),
        "firing": lambda alert, *instances: wait(90, lambda: firing(url, alert, set(instances))),
        "resolved": lambda alert: wait(90, lambda: firing(url, alert, set())),
        "queries": lambda file, job: wait(60, lambda: queries(url, load(file), job)),
    }
    problems = checks[verb](*arguments)
    for problem in problems:
        print(f"prometheus: {problem}", file=sys.stderr)
    return 1 if problems else 0


def load(file):
    with open(file, encoding="utf-8") as text:
        return json.load(text)


def wait(seconds, find_problems):
    """The problems that are left when there are none, or the time is over."""
    end = time.monotonic() + seconds
    while (problems := find_problems()) and time.monotonic() < end:
        time.sleep(0.5)
    return problems


def ask(url, path, **parameters):
    query = urllib.parse.urlencode(parameters)
    try:
        with urllib.request.urlopen(f"{url}/api/v1/{path}?{query}", timeout=20) as answer:
            return json.load(answer)["data"]
    except urllib.error.HTTPError as error:
        raise ValueError(json.load(error)["error"]) from None


# --- Files ---


def dashboard(board):
    problems, seen, cells = [], set(), {}
    for panel in board["panels"]:
        name = f'panel {panel["id"]} "{panel["title"]}"'
        if panel["id"] in seen:
            problems.append(f"{name}: its id is taken")
        seen.add(panel["id"])
        place = panel["gridPos"]
        if place["x"] + place["w"] > GRID_COLUMNS:
            problems.append(f"{name}: reaches past the right edge")
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                if (x, y) in cells:
                    problems.append(f"{name}: overlaps {cells[x, y]} at {x}, {y}")
                cells[x, y] = name
        if panel["type"] != "row":
            problems += panel_problems(name, panel)
    variables = {variable["name"] for variable in board["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]+)", json.dumps(board["panels"])))
    problems += [f"variable ${name} is not declared" for name in used - variables]
    problems += [f"{name} names a job: {query}" for name, query in expressions(board) if names_job(query)]
    return sorted(set(problems))


def names_job(text):
    """Whether a selector names a scrape job, which is the user's to choose."""
    return re.search(r'\bjob\s*[=!]~?\s*"(?!\$job")', text) is not None


def panel_problems(name, panel):
    problems = []
    if not panel.get("description"):
        problems.append(f"{name}: no description")
    unit = panel["fieldConfig"]["defaults"].get("unit")
    if panel["type"] in ("timeseries", "stat") and unit not in UNITS:
        problems.append(f"{name}: unit {unit} is none of Grafana's")
    if not panel["targets"]:
        problems.append(f"{name}: no query")
    references = [target["refId"] for target in panel["targets"]]
    if len(set(references)) != len(references):
        problems.append(f"{name}: a refId twice")
    return problems


def runbook(rules, book):
    with open(rules, encoding="utf-8") as text:
        text = text.read()
    named = [line.strip() for line in text.splitlines() if names_job(line)]
    alerts = re.findall(r"- alert: (\w+)", text)
    links = re.findall(r"runbook_url: deploy/prometheus/RUNBOOK\.md#(\w+)", text)
    with open(book, encoding="utf-8") as text:
        book = text.read()
    sections = re.findall(r"^## (Ingestd\w+)$", book, re.MULTILINE)
    problems = [f"{alert}: no link to its section" for alert in alerts if alert.lower() not in links]
    problems += [f"a rule names a job: {line}" for line in named]
    problems += [f"{alert}: no section in the runbook" for alert in set(alerts) - set(sections)]
    problems += [f"{section}: the runbook has it, the rules do not" for section in set(sections) - set(alerts)]
    anchors = {section.lower() for section in sections}
    problems += [f"#{link}: no such section" for link in re.findall(r"\(#(\w+)\)", book) if link not in anchors]
    return problems


# --- A running Prometheus ---


def healthy(url, job):
    targets = ask(url, "targets", state="active")["activeTargets"]
    problems = [f'{t["scrapeUrl"]}: {t["health"]} {t["lastError"]}' for t in targets if t["health"] != "up"]
    if sum(t["labels"]["job"] == job for t in targets) != 2:
        problems.append(f"not two targets of the job {job}")
    committed = ask(url, "query", query="sum by (instance) (ingestd_events_committed_total) > 10000")["result"]
    if len(committed) != 2:
        problems.append("not both nodes have committed 10,000 events")
    fired = ask(url, "query", query='ALERTS{alertstate="firing"}')["result"]
    problems += [f'{f["metric"]["alertname"]} fires' for f in fired]
    return problems


def firing(url, alert, instances):
    found = ask(url, "query", query=f'ALERTS{{alertname="{alert}", alertstate="firing"}}')["result"]
    found = {series["metric"]["instance"] for series in found}
    return [] if found == instances else [f"{alert} fires for {sorted(found)}, not for {sorted(instances)}"]


def queries(url, board, job):
    problems, count = [], 0
    for group in ask(url, "rules")["groups"]:
        for rule in group["rules"]:
            if rule["health"] != "ok":
                problems.append(f'rule {rule["name"]}: {rule["health"]} {rule.get("lastError", "")}')
            count += 1
    for name, expression in expressions(board):
        count += 1
        for variable, value in {**VARIABLES, "$job": job}.items():
            expression = expression.replace(variable, value)
        try:
            series = series_over_time(url, expression)
        except ValueError as error:
            problems.append(f"{name}: {error}: {expression}")
            continue
        if not series and not any(metric in expression for metric in MAY_BE_EMPTY):
            problems.append(f"{name}: no data: {expression}")
    if not problems:
        print(f"prometheus: {count} rules and queries evaluate, with data")
    return problems


def expressions(board):
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            yield f'panel "{panel["title"]}" {target["refId"]}', target["expr"]
    for annotation in board["annotations"]["list"]:
        if "expr" in annotation:
            yield f'annotation "{annotation["name"]}"', annotation["expr"]
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            yield f'variable "{variable["name"]}"', re.fullmatch(r"label_values\((.*), \w+\)", variable["definition"])[1]


def series_over_time(url, expression):
    """The series that have a number (not NaN) at some time of the last five minutes, as a panel would show them."""
    now = time.time()
    found = ask(url, "query_range", query=expression, start=now - 300, end=now, step=2)["result"]
    return [series for series in found if any(value != "NaN" for _, value in series["values"])]


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
