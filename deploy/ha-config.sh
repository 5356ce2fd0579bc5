#!/bin/sh
# Write the configuration of machines that are a highly available cluster together: each runs a control plane, a node
# daemon and a member of etcd; the first one PostgreSQL too.
#
# Usage: deploy/ha-config.sh DIRECTORY NAME=ADDRESS...
#        deploy/ha-config.sh --help
#
#   NAME      a machine's host name, as `hostname` prints it there
#   ADDRESS   the IP address under which the others call it
#
# Example: deploy/ha-config.sh cluster node1=10.0.0.1 node2=10.0.0.2 node3=10.0.0.3
#
# It writes controlplane.yaml, node.yaml and etcd's environment into DIRECTORY/NAME/etc, beside the certificates that
# deploy/certificates.sh put there. What they do not say is as deploy/controlplane.yaml and deploy/node.yaml have it.
# Nothing is ever overwritten.
#
# Exit status:
#   0  done
#   1  a file is there already, or certificates are not; nothing was written
#   2  wrong usage

set -eu

usage() {
    sed -n '5,11s/^# \{0,1\}//p' "$0"
}

fail() {
    printf 'ha-config: %s\n' "$*" >&2
    exit 1
}

misused() {
    printf 'ha-config: %s\n' "$*" >&2
    usage >&2
    exit 2
}

# each FORMAT MACHINE...: print the format once a machine, commas between; %NAME% and %IP% stand for its own.
each() {
    format=$1
    shift
    for one; do
        printf '%s\n' "$format" | sed "s/%NAME%/${one%%=*}/g; s/%IP%/${one#*=}/g"
    done | paste -s -d , -
}

# One section `tls:` of YAML, with the certificate named, for both directions.
tls() {
    files=/etc/limiquantix/tls
    printf '{enabled: true, cert_path: %s, key_path: %s, ca_path: %s}' \
        "$files/$1.pem" "$files/$1-key.pem" "$files/ca.pem"
}

write_control_plane() {
    cat >"$etc/limiquantix/controlplane.yaml" <<YAML
# One of the control planes of a cluster; but for grpc.listen_address, all have the same.
grpc:
  listen_address: $address:8081
  tls: $(tls controlplane)
nodes:
  tls: $(tls controlplane)
# No password: the certificate, whose common name is the role, is what lets in.
database:
  url: "postgresql://limiquantix@$database/limiquantix?sslmode=verify-full\
&sslrootcert=/etc/limiquantix/tls/ca.pem\
&sslcert=/etc/limiquantix/tls/controlplane.pem&sslkey=/etc/limiquantix/tls/controlplane-key.pem"
coordination:
  backend: etcd
  endpoints: [$endpoints]
  tls:
    ca_path: /etc/limiquantix/tls/ca.pem
    cert_path: /etc/limiquantix/tls/controlplane.pem
    key_path: /etc/limiquantix/tls/controlplane-key.pem
YAML
}

write_node() {
    cat >"$etc/limiquantix/node.yaml" <<YAML
# Names are as deploy/certificates.sh made them; certificates of libvirt are where it looks by itself.
node:
  hostname: $name
server:
  listen_address: $address:9090
control_plane:
  address: $planes
  registration_enabled: true
tls: $(tls node)
migration:
  address: $address
self_fencing:
  guard: external
  run_dir: /run/limiquantix/node
YAML
}

write_etcd() {
    cat >"$etc/default/etcd" <<ENVIRONMENT
# Read by etcd.service. The data directory is not that of the lone member which the package starts.
ETCD_NAME=$name
ETCD_DATA_DIR=/var/lib/etcd/limiquantix
ETCD_INITIAL_CLUSTER=$members
ETCD_INITIAL_CLUSTER_TOKEN=limiquantix
ETCD_INITIAL_CLUSTER_STATE=new
ETCD_LISTEN_CLIENT_URLS=https://$address:2379,https://127.0.0.1:2379
ETCD_ADVERTISE_CLIENT_URLS=https://$address:2379
ETCD_LISTEN_PEER_URLS=https://$address:2380
ETCD_INITIAL_ADVERTISE_PEER_URLS=https://$address:2380
ETCD_CLIENT_CERT_AUTH=true
ETCD_TRUSTED_CA_FILE=/etc/etcd/ca.pem
ETCD_CERT_FILE=/etc/etcd/etcd.pem
ETCD_KEY_FILE=/etc/etcd/etcd-key.pem
ETCD_PEER_CLIENT_CERT_AUTH=true
ETCD_PEER_TRUSTED_CA_FILE=/etc/etcd/ca.pem
ETCD_PEER_CERT_FILE=/etc/etcd/etcd.pem
ETCD_PEER_KEY_FILE=/etc/etcd/etcd-key.pem
ETCD_AUTO_COMPACTION_RETENTION=1
ENVIRONMENT
}

case ${1-} in
    -h | --help)
        usage
        exit 0
        ;;
esac
[ $# -ge 2 ] || misused 'a directory and at least one NAME=ADDRESS are needed'
directory=$1
shift
for machine; do
    case $machine in
        *[!A-Za-z0-9.=-]* | =* | *= | *=*=* | .* | -*) misused "not NAME=ADDRESS: $machine" ;;
        *=*[!0-9.]*) misused "not an IPv4 address: ${machine#*=}" ;;
        *=*) ;;
        *) misused "not NAME=ADDRESS: $machine" ;;
    esac
    etc=$directory/${machine%%=*}/etc
    [ -e "$etc/limiquantix/tls/controlplane.pem" ] || fail "$etc has no certificates: run deploy/certificates.sh first"
    for file in limiquantix/controlplane.yaml limiquantix/node.yaml default/etcd; do
        [ ! -e "$etc/$file" ] || fail "$etc/$file is there already and is left as it is; nothing was written"
    done
done

database=${1#*=}
endpoints=$(each 'https://%IP%:2379' "$@")
members=$(each '%NAME%=https://%IP%:2380' "$@")
planes=$(each '%IP%:8081' "$@")
for machine; do
    name=${machine%%=*}
    address=${machine#*=}
    etc=$directory/$name/etc
    mkdir -p "$etc/default"
    write_control_plane
    write_node
    write_etcd
    printf '%s\n' "$directory/$name"
done
