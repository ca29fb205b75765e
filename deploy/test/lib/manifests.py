"""What the manifests say, for deploy/test/kubernetes.sh.

usage: manifests.py consistent RENDERED    checks what no schema can, of ingestd's own
       manifests.py citus RENDERED         the same of the Citus cluster and of what ties ingestd to it
       manifests.py environment RENDERED   the nodes' settings as lines NAME=VALUE, with files under $SECRETS, which are made
       manifests.py command RENDERED FILE  what the container of the Job in FILE runs, a word a line, after it was held against
                                           the nodes
"""

import os
import re
import sys

import yaml


def documents(path):
    with open(path) as file:
        return [document for document in yaml.safe_load_all(file) if document]


def one(kind, rendered, name=None):
    found = [d for d in rendered if d["kind"] == kind and name in (None, d["metadata"]["name"])]
    assert len(found) == 1, f"{len(found)} of kind {kind}"
    return found[0]


def of(name, rendered):
    """Those that carry the label of `name`."""
    return [d for d in rendered if d["metadata"].get("labels", {}).get("app.kubernetes.io/name") == name]


def drain_seconds_max():
    """STOP_WAIT_MAX of the server's own limits: the sum of its steps."""
    source = open("src/limits.rs").read()

    def seconds(name):
        return int(re.search(rf"pub const {name}: Duration = Duration::from_secs\((\d+)\)", source)[1])

    steps = re.search(r"pub const STOP_WAIT_MAX: Duration = Duration::from_secs\((.*?)\n\);", source, re.DOTALL)[1]
    return sum(seconds(name) for name in re.findall(r"(\w+)\.as_secs\(\)", steps))


def consistent(rendered):
    rendered = of("ingestd", rendered)
    stateful_set = one("StatefulSet", rendered)["spec"]
    pod = stateful_set["template"]["spec"]
    container = pod["containers"][0]
    labels = stateful_set["template"]["metadata"]["labels"]
    version = re.search(r'^version = "(.*)"', open("Cargo.toml").read(), re.M)[1]

    pre_stop = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    needed = pre_stop + drain_seconds_max()
    grace = pod["terminationGracePeriodSeconds"]
    assert grace >= needed, f"a grace of {grace} s is less than preStop and drain, {needed} s"
    print(f"grace {grace} s, preStop and drain {needed} s at most")

    assert container["image"].endswith(f":{version}"), f"{container['image']} is not version {version}"
    settings = one("ConfigMap", rendered)
    references = {source["configMapRef"]["name"] for source in container["envFrom"]}
    assert references == {settings["metadata"]["name"]}, references
    secrets = {d["metadata"]["name"] for d in rendered if d["kind"] == "Secret"}
    assert {v["secret"]["secretName"] for v in pod["volumes"]} == secrets, secrets
    # The schema takes any text here, and one that Kubernetes does not know would be refused, or lose journals.
    policy = stateful_set["persistentVolumeClaimRetentionPolicy"]
    assert policy == {"whenScaled": "Retain", "whenDeleted": "Retain"}, policy
    claims = {claim["metadata"]["name"] for claim in stateful_set["volumeClaimTemplates"]}
    volumes = {volume["name"] for volume in pod["volumes"]} | claims
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes, volumes
    ports = {port["name"] for port in container["ports"]}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["port"] in ports, probe

    for service in (d for d in rendered if d["kind"] == "Service"):
        assert service["spec"]["selector"].items() <= labels.items(), service["metadata"]["name"]
    assert stateful_set["selector"]["matchLabels"].items() <= labels.items()
    assert one("PodDisruptionBudget", rendered)["spec"]["selector"]["matchLabels"].items() <= labels.items()
    for spread in pod["topologySpreadConstraints"]:
        assert spread["labelSelector"]["matchLabels"].items() <= labels.items()
    assert one("Service", rendered, stateful_set["serviceName"])["spec"]["clusterIP"] == "None"
    autoscaler = one("HorizontalPodAutoscaler", rendered)["spec"]
    assert autoscaler["scaleTargetRef"]["name"] == one("StatefulSet", rendered)["metadata"]["name"]
    connections = autoscaler["maxReplicas"] * (int(settings["data"]["DB_POOL_MAX_SIZE"]) + 1)  # one watches the others
    assert connections <= 97, f"{connections} connections are more than PostgreSQL's usual 100, less 3 for superusers"
    storage = stateful_set["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"]
    assert int(storage.removesuffix("Gi")) * 1024 >= 2 * int(settings["data"]["JOURNAL_MAX_MB"]), storage


def citus(rendered):
    nodes = of("citus", rendered)
    sets = [d for d in nodes if d["kind"] == "StatefulSet"]
    job = one("Job", nodes)["spec"]["template"]
    mounted = {"ConfigMap": set(), "Secret": set()}
    for stateful_set in sets:
        spec, name = stateful_set["spec"], stateful_set["metadata"]["name"]
        labels = spec["template"]["metadata"]["labels"]
        assert spec["selector"]["matchLabels"].items() <= labels.items(), name
        assert spec["persistentVolumeClaimRetentionPolicy"] == {"whenScaled": "Retain", "whenDeleted": "Retain"}, name
        service = one("Service", nodes, spec["serviceName"])["spec"]
        assert service["clusterIP"] == "None" and service["selector"].items() <= labels.items(), name
        # A selector of both kinds of nodes would send clients to workers.
        matching = [s for s in sets if service["selector"].items() <= s["spec"]["template"]["metadata"]["labels"].items()]
        assert matching == [stateful_set], f"the Service {spec['serviceName']} selects {len(matching)} StatefulSets"
    for pod in [s["spec"]["template"] for s in sets] + [job]:
        container = pod["spec"]["containers"][0]
        volumes = {v["name"] for v in pod["spec"]["volumes"]}
        claims = {c["metadata"]["name"] for s in sets for c in s["spec"]["volumeClaimTemplates"] if pod is s["spec"]["template"]}
        assert {m["name"] for m in container["volumeMounts"]} == volumes | claims, container["name"]
        for volume in pod["spec"]["volumes"]:
            if "configMap" in volume:
                assert volume["configMap"]["defaultMode"] == 0o555, "the image sources what it cannot execute"
                mounted["ConfigMap"].add(volume["configMap"]["name"])
            if "secret" in volume:
                mounted["Secret"].add(volume["secret"]["secretName"])
        for kind in ("NetworkPolicy", "PodDisruptionBudget"):
            spec = one(kind, rendered, "citus")["spec"]
            selector = spec.get("podSelector") or spec["selector"]
            assert selector["matchLabels"].items() <= pod["metadata"]["labels"].items(), kind

    config_map = one("ConfigMap", [d for d in rendered if d["metadata"]["name"] in mounted["ConfigMap"]])
    for pod in [s["spec"]["template"] for s in sets] + [job]:
        for mount in pod["spec"]["containers"][0]["volumeMounts"]:
            assert mount.get("subPath", "citus.conf") in config_map["data"], mount
    password = one("Secret", [d for d in rendered if d["metadata"]["name"] in mounted["Secret"]])["stringData"]["password"]

    # Who is who: the names that the Job registers are those that the StatefulSets give.
    names = {s["metadata"]["name"]: [f"{s['metadata']['name']}-{number}.{s['spec']['serviceName']}"
                                     for number in range(s["spec"]["replicas"])] for s in sets}
    settings = {v["name"]: v["value"] for v in job["spec"]["containers"][0]["env"]}
    assert [settings["COORDINATOR"]] == names["citus-coordinator"], settings["COORDINATOR"]
    assert settings["WORKERS"].split() == names["citus-worker"], settings["WORKERS"]
    url = one("Secret", rendered, "ingestd-urls")["stringData"]["database_url"]
    user, given, host, database = re.fullmatch(r"postgresql://(\w+):([^@]+)@([^:/]+):5432/(\w+)\?sslmode=require", url).groups()
    assert (user, database, given) == (settings["PGUSER"], settings["PGDATABASE"], password), "the URL is of another database"
    assert host == one("StatefulSet", nodes, "citus-coordinator")["spec"]["serviceName"], host

    conf = dict(re.findall(r"^([a-z0-9_.]+) = '?([^'\n]*)'?$", config_map["data"]["citus.conf"], re.M))
    pool = int(one("ConfigMap", of("ingestd", rendered))["data"]["DB_POOL_MAX_SIZE"])
    sessions = one("HorizontalPodAutoscaler", rendered)["spec"]["maxReplicas"] * pool
    assert 2 * sessions <= int(conf["max_connections"]), f"{sessions} sessions, and each may have two connections to a worker"
    prepared = int(conf["max_prepared_transactions"])
    assert prepared >= int(conf["max_connections"]), f"{prepared} prepared transactions are fewer than connections"
    print(f"{len(names['citus-worker'])} workers; {sessions} sessions at most, {conf['max_connections']} connections a node")


def environment(rendered):
    """As a kubelet would give it: the image's own settings, the ConfigMap's, the pod's."""
    rendered = of("ingestd", rendered)
    for name, value in re.findall(r"\b(LISTEN_ADDR|JOURNAL_DIR)=(\S+)", open("Dockerfile").read()):
        print(f"{name}={value}")
    for name, value in one("ConfigMap", rendered)["data"].items():
        print(f"{name}={value}")
    pod = one("StatefulSet", rendered)["spec"]["template"]["spec"]
    container = pod["containers"][0]
    folder_of = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    secret_of = {volume["name"]: volume["secret"]["secretName"] for volume in pod["volumes"]}
    for variable in container["env"]:
        value = variable.get("value", "ingestd-0")
        folder, file = os.path.split(value)
        if folder in folder_of:
            contents = one("Secret", rendered, secret_of[folder_of[folder]])["stringData"][file]
            value = os.path.join(os.environ["SECRETS"], file)
            with open(value, "w") as out:
                out.write(contents)
        print(f"{variable['name']}={value}")


def command(rendered, job):
    nodes = one("StatefulSet", rendered)["spec"]["template"]["spec"]
    node, [pod] = nodes["containers"][0], [document["spec"]["template"]["spec"] for document in job]
    container = pod["containers"][0]
    assert container["image"] == node["image"], container["image"]
    assert container["securityContext"] == node["securityContext"] and pod["securityContext"] == nodes["securityContext"]
    folders = {mount["mountPath"]: mount["name"] for mount in node["volumeMounts"]}
    for mount in container["volumeMounts"]:
        assert folders[mount["mountPath"]] == mount["name"], mount
    for variable in container["env"]:
        folder, name = os.path.split(variable["value"])
        if folder in folders:
            assert variable in node["env"], variable
    selector = one("NetworkPolicy", rendered)["spec"]["podSelector"]["matchExpressions"][0]
    name = job[0]["spec"]["template"]["metadata"]["labels"][selector["key"]]
    assert name in selector["values"], f"the NetworkPolicy does not know {name}"
    print("\n".join(container["command"]))


CHECKS = {"consistent": consistent, "citus": citus, "environment": environment, "command": command}
CHECKS[sys.argv[1]](*map(documents, sys.argv[2:]))
