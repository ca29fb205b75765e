"""What the manifests say, for deploy/test/kubernetes.sh.

usage: manifests.py consistent RENDERED    checks what no schema can
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


def drain_seconds_max():
    """From the server's own limits: requests, then the queue, then twice what is under way."""
    source = open("src/limits.rs").read()

    def seconds(name):
        return int(re.search(rf"pub const {name}: Duration = Duration::from_secs\((\d+)\)", source)[1])

    return seconds("HTTP_DRAIN_WAIT_MAX") + seconds("FLUSH_DRAIN_WAIT_MAX") + 2 * seconds("FLUSH_STOP_WAIT_MAX")


def consistent(rendered):
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


def environment(rendered):
    """As a kubelet would give it: the image's own settings, the ConfigMap's, the pod's."""
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


{"consistent": consistent, "environment": environment, "command": command}[sys.argv[1]](*map(documents, sys.argv[2:]))
