#!/bin/sh
# Write what machines need that are a highly available cluster together: each runs a control plane, a node daemon and a
# member of etcd; the first one PostgreSQL too.
#
# Usage: deploy/ha-config.sh DIRECTORY NAME=ADDRESS...
#        deploy/ha-config.sh --help
#
#   NAME      a machine's host name, as `hostname` prints it there
#   ADDRESS   the IP address under which the others call it
#
# Example: deploy/ha-config.sh cluster node1=10.0.0.1 node2=10.0.0.2 node3=10.0.0.3
#
# DIRECTORY/NAME/etc is then what belongs below /etc of that machine, keys with mode 600: controlplane.yaml, node.yaml,
# etcd's environment, the key of the secrets in the database, and certificates of etcd and PostgreSQL, and of control
# planes for these two. What the files do not say is as deploy/controlplane.yaml and deploy/node.yaml have it.
#
# Whom hosts and control planes believe is not made here: the first control plane makes the cluster's authority, and hosts
# join. Etcd and PostgreSQL have to be there before, which is why they have one of their own, DIRECTORY/ca. Its key lets
# into both, and DIRECTORY/secret.key opens what is sealed in the database: keep DIRECTORY off the machines. A later call
# goes on with both. To renew a machine's certificates, which are valid for ten years, move its directory away first.
# Nothing is ever overwritten.
#
# Exit status:
#   0  done
#   1  a machine has files already, which are left as they are, or making them failed
#   2  wrong usage

set -eu
umask 077

days=3650

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

# Run openssl without its progress; what it says is shown only when it fails.
run_openssl() {
    said=$(openssl "$@" 2>&1) || fail "openssl $1 failed: $said"
}

# Make the authority of etcd and PostgreSQL, unless it is there.
make_authority() {
    [ ! -e "$directory/ca" ] || return 0
    rm -rf "$directory/ca.new"
    mkdir -p "$directory/ca.new"
    run_openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days "$days" -subj '/CN=LimiQuantix stores' \
        -addext 'keyUsage=critical,keyCertSign,cRLSign' -keyout "$directory/ca.new/key.pem" -out "$directory/ca.new/ca.pem"
    mv "$directory/ca.new" "$directory/ca"
}

# Make the key of the secrets in the database, unless it is there.
make_secret_key() {
    [ ! -e "$directory/secret.key" ] || return 0
    printf 'v1 %s\n' "$(openssl rand -base64 32)" >"$directory/secret.key"
}

# certify COMMON_NAME CERTIFICATE KEY: for both directions, as members of etcd call each other, too.
certify() {
    mkdir -p "${2%/*}" "${3%/*}"
    printf '%s\n' "subjectAltName=DNS:$name,DNS:localhost,IP:127.0.0.1,IP:$address" 'basicConstraints=critical,CA:FALSE' \
        'keyUsage=critical,digitalSignature,keyEncipherment' 'extendedKeyUsage=serverAuth,clientAuth' >"$scratch/extensions"
    run_openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$1" -keyout "$3" \
        -out "$scratch/request"
    run_openssl x509 -req -in "$scratch/request" -CA "$directory/ca/ca.pem" -CAkey "$directory/ca/key.pem" \
        -set_serial "0x$(openssl rand -hex 15)" -days "$days" -extfile "$scratch/extensions" -out "$2"
}

write_certificates() {
    tls=$etc/limiquantix/tls
    # PostgreSQL takes the common name for the role.
    certify limiquantix "$tls/controlplane.pem" "$tls/controlplane-key.pem"
    certify "postgresql $name" "$tls/postgresql.pem" "$tls/postgresql-key.pem"
    certify "etcd $name" "$etc/etcd/etcd.pem" "$etc/etcd/etcd-key.pem"
    cp "$directory/ca/ca.pem" "$tls/ca.pem"
    cp "$directory/ca/ca.pem" "$etc/etcd/ca.pem"
}

# each FORMAT MACHINE...: print the format once a machine, commas between; %NAME% and %IP% stand for its own.
each() {
    format=$1
    shift
    for one; do
        printf '%s\n' "$format" | sed "s/%NAME%/${one%%=*}/g; s/%IP%/${one#*=}/g"
    done | paste -s -d , -
}

write_control_plane() {
    cat >"$etc/limiquantix/controlplane.yaml" <<YAML
# One of the control planes of a cluster.
http:
  listen_address: $address:8080
grpc:
  listen_address: $address:8081
security:
  name: $name
  names: [$name, $address, localhost, 127.0.0.1]
  hosts_listen_address: $address:8082
  addresses: [$doors]
  hosts_addresses: [$hosts_doors]
secrets:
  key_file: /etc/limiquantix/secret.key
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
# Who it is, and where the control planes are, the host is told when it joins.
node:
  hostname: $name
server:
  listen_address: $address:9090
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
command -v openssl >/dev/null || fail 'openssl is not installed'
for machine; do
    case $machine in
        *[!A-Za-z0-9.=-]* | =* | *= | *=*=* | .* | -*) misused "not NAME=ADDRESS: $machine" ;;
        *=*[!0-9.]*) misused "not an IPv4 address: ${machine#*=}" ;;
        ca=*) misused "no name for a machine: ca" ;;
        *=*) ;;
        *) misused "not NAME=ADDRESS: $machine" ;;
    esac
    [ ! -e "$directory/${machine%%=*}" ] ||
        fail "$directory/${machine%%=*} is there already and is left as it is; nothing was made"
done

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$directory"
make_authority
make_secret_key
database=${1#*=}
endpoints=$(each 'https://%IP%:2379' "$@")
members=$(each '%NAME%=https://%IP%:2380' "$@")
doors=$(each '"%IP%:8081"' "$@")
hosts_doors=$(each '"%IP%:8082"' "$@")
for machine; do
    name=${machine%%=*}
    address=${machine#*=}
    made=$directory/.$name.new
    rm -rf "$made"
    etc=$made/etc
    mkdir -p "$etc/default" "$etc/limiquantix"
    write_certificates
    write_control_plane
    write_node
    write_etcd
    cp "$directory/secret.key" "$etc/limiquantix/secret.key"
    # Each user of the machine finds the way to its own key, which alone is secret.
    find "$made" -type d -exec chmod 755 {} +
    find "$made" -type f ! -name '*key.pem' ! -name secret.key -exec chmod 644 {} +
    mv "$made" "$directory/$name"
    printf '%s\n' "$directory/$name"
done
