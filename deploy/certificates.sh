#!/bin/sh
# Make the certificates by which control planes, node daemons, etcd, PostgreSQL, libvirt and QEMU of several machines know
# each other.
#
# Usage: deploy/certificates.sh DIRECTORY NAME=ADDRESS[,ADDRESS...]...
#        deploy/certificates.sh --help
#
#   NAME      a machine's host name, as `hostname` prints it there
#   ADDRESS   an IP address or a DNS name under which the others call it
#
# Example: deploy/certificates.sh cluster node1=10.0.0.1 node2=10.0.0.2 node3=10.0.0.3
#
# DIRECTORY/NAME/etc is then what belongs below /etc of that machine, keys with mode 600. DIRECTORY/ca and
# DIRECTORY/hosts-ca are the authorities: made by the first call, used by later ones that add machines. Their keys let in
# whoever has them: keep them off the machines. There are two, since libvirt commands a host for whoever has a certificate
# of the one it trusts, and control planes need none of that.
#
# Nothing is ever overwritten. To renew a machine's certificates, move its directory away first. All are valid for ten
# years: what ends with one is the leases of the hosts, and with them their VMs.
#
# Exit status:
#   0  done
#   1  a machine has certificates already, which are left as they are, or making them failed
#   2  wrong usage

set -eu
umask 077

days=3650

usage() {
    sed -n '5,12s/^# \{0,1\}//p' "$0"
}

fail() {
    printf 'certificates: %s\n' "$*" >&2
    exit 1
}

misused() {
    printf 'certificates: %s\n' "$*" >&2
    usage >&2
    exit 2
}

# Run openssl without its progress; what it says is shown only when it fails.
run_openssl() {
    said=$(openssl "$@" 2>&1) || fail "openssl $1 failed: $said"
}

# make_authority DIRECTORY COMMON_NAME, unless it is there.
make_authority() {
    [ ! -e "$1" ] || return 0
    rm -rf "$1.new"
    mkdir -p "$1.new"
    run_openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days "$days" -subj "/CN=$2" \
        -addext 'keyUsage=critical,keyCertSign,cRLSign' -keyout "$1.new/key.pem" -out "$1.new/ca.pem"
    mv "$1.new" "$1"
}

# Print subject alternative names for a machine: its name, its addresses, and loopback, for programs on it.
alternative_names() {
    printf 'DNS:%s,DNS:localhost,IP:127.0.0.1' "$1"
    printf '%s\n' "$2" | tr ',' '\n' | while read -r address; do
        case $address in
            *:*) printf ',IP:%s' "$address" ;;
            *[!0-9.]*) printf ',DNS:%s' "$address" ;;
            *) printf ',IP:%s' "$address" ;;
        esac
    done
}

# certify AUTHORITY COMMON_NAME ALTERNATIVE_NAMES CERTIFICATE KEY: for both directions, as every one of them calls, too.
certify() {
    mkdir -p "${4%/*}" "${5%/*}"
    printf '%s\n' "subjectAltName=$3" 'basicConstraints=critical,CA:FALSE' \
        'keyUsage=critical,digitalSignature,keyEncipherment' 'extendedKeyUsage=serverAuth,clientAuth' >"$scratch/extensions"
    run_openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$2" \
        -keyout "$5" -out "$scratch/request"
    run_openssl x509 -req -in "$scratch/request" -CA "$1/ca.pem" -CAkey "$1/key.pem" \
        -set_serial "0x$(openssl rand -hex 15)" -days "$days" -extfile "$scratch/extensions" -out "$4"
}

# make_machine NAME ADDRESSES
make_machine() {
    made=$directory/.$1.new
    rm -rf "$made"
    names=$(alternative_names "$1" "$2")
    ours=$made/etc/limiquantix/tls
    # PostgreSQL takes the common name for the role.
    certify "$directory/ca" limiquantix "$names" "$ours/controlplane.pem" "$ours/controlplane-key.pem"
    certify "$directory/ca" "node $1" "$names" "$ours/node.pem" "$ours/node-key.pem"
    certify "$directory/ca" "postgresql $1" "$names" "$ours/postgresql.pem" "$ours/postgresql-key.pem"
    certify "$directory/ca" "etcd $1" "$names" "$made/etc/etcd/etcd.pem" "$made/etc/etcd/etcd-key.pem"
    cp "$directory/ca/ca.pem" "$ours/ca.pem"
    cp "$directory/ca/ca.pem" "$made/etc/etcd/ca.pem"

    # libvirt and QEMU look for these names at these places.
    pki=$made/etc/pki
    certify "$directory/hosts-ca" "$1" "$names" "$pki/libvirt/servercert.pem" "$pki/libvirt/private/serverkey.pem"
    cp "$pki/libvirt/servercert.pem" "$pki/libvirt/clientcert.pem"
    cp "$pki/libvirt/private/serverkey.pem" "$pki/libvirt/private/clientkey.pem"
    certify "$directory/hosts-ca" "$1" "$names" "$pki/qemu/server-cert.pem" "$pki/qemu/server-key.pem"
    cp "$pki/qemu/server-cert.pem" "$pki/qemu/client-cert.pem"
    cp "$pki/qemu/server-key.pem" "$pki/qemu/client-key.pem"
    mkdir "$pki/CA"
    cp "$directory/hosts-ca/ca.pem" "$pki/CA/cacert.pem"
    cp "$directory/hosts-ca/ca.pem" "$pki/qemu/ca-cert.pem"

    # Certificates are no secret, and each user of the machine finds the way to its own key, which alone is.
    find "$made" -type d -exec chmod 755 {} +
    find "$made" -type f ! -name '*key.pem' -exec chmod 644 {} +
    mv "$made" "$directory/$1"
}

case ${1-} in
    -h | --help)
        usage
        exit 0
        ;;
esac
[ $# -ge 2 ] || misused 'a directory and at least one NAME=ADDRESS are needed'
command -v openssl >/dev/null || fail 'openssl is not installed'
directory=$1
shift
for machine; do
    name=${machine%%=*}
    case $machine in
        *[!A-Za-z0-9.,:=_-]* | =* | *= | *=*=* | .* | -* | *=,* | *, | *,,*) misused "not NAME=ADDRESS: $machine" ;;
        *=*) ;;
        *) misused "not NAME=ADDRESS: $machine" ;;
    esac
    case $name in
        ca | hosts-ca | *[!A-Za-z0-9.-]*) misused "no name for a machine: $name" ;;
    esac
    [ ! -e "$directory/$name" ] || fail "$directory/$name is there already and is left as it is; nothing was made"
done

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$directory"
make_authority "$directory/ca" 'LimiQuantix'
make_authority "$directory/hosts-ca" 'LimiQuantix hosts'
for machine; do
    make_machine "${machine%%=*}" "${machine#*=}"
    printf '%s\n' "$directory/${machine%%=*}"
done
