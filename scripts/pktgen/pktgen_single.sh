#!/usr/bin/env bash
# Sends one flow of UDP packets from one CPU, as fast as it can or is told; -h lists the options. As root.
# As long as -n and -w say: 100,000 packets are well below a second on a NIC.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
one_thread=yes
. "$here/functions.sh"
. "$here/parameters.sh"

trap clean EXIT
prepare
add_sender "$first_cpu" 49152 49152 0
send
report
