#!/usr/bin/env bash
# Sends 16,384 flows of UDP packets from -t CPUs, a send queue each, so that the receiver's RSS spreads them. As root.
# As long as -n and -w say: 100,000 packets a CPU are well below a second on a NIC.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
one_thread=''
. "$here/functions.sh"
. "$here/parameters.sh"

trap clean EXIT
prepare
for ((n = 0; n < threads; n++)); do add_sender "$((first_cpu + n))" 49152 65535 "$n"; done
send
report
