# Sourced by the pktgen scripts: their options, as users of the kernel's samples/pktgen know them, and what stands without one.
# Takes no time.

usage() {
    cat >&2 <<USAGE
usage: $0 -i INTERFACE -d ADDRESS [options]
  -i INTERFACE  sends there (required)
  -d ADDRESS    target, IPv4 or IPv6: one of the router's own addresses (required)
  -m MAC        the target's MAC address; found out by ARP or neighbour discovery when not said
  -s BYTES      frame size without its check sequence (122: an empty sealed mesh packet over IPv4)
  -p PORT       UDP target port (4783)
  -k            UDP checksums, in the NIC where it can (without: 0)
  -n COUNT      packets per thread, 0 until interrupted (100000)
  -t THREADS    threads, each on a CPU and a send queue of its own (1${one_thread:+; more: pktgen_multi.sh})
  -f CPU        the first thread's CPU (0)
  -c COUNT      sends each packet so often before it makes a new one (0); veth and others refuse it
  -b COUNT      packets handed to the driver at once (1)
  -w NS         nanoseconds from packet to packet, per thread (0)
  -v            says what it does
  -x            prints each command
USAGE
    exit 2
}

# A whole number from $3 to $4, as option $1.
is_number() {
    [[ "$2" =~ ^(0|[1-9][0-9]{0,9})$ ]] && [ "$2" -ge "$3" ] && [ "$2" -le "$4" ] || fail "-$1 wants a number from $3 to $4, not '$2'"
}

interface='' target='' target_mac='' frame_bytes=122 port=4783 checksums='' count=100000
threads=1 first_cpu=0 clones=0 burst=1 delay_ns=0 verbose=''
while getopts ':i:d:m:s:p:kn:t:f:c:b:w:vx6h' option; do
    case "$option" in
        i) interface=$OPTARG ;;
        d) target=$OPTARG ;;
        m) target_mac=$OPTARG ;;
        s) is_number s "$OPTARG" 60 9014; frame_bytes=$OPTARG ;;
        p) is_number p "$OPTARG" 1 65535; port=$OPTARG ;;
        k) checksums=yes ;;
        n) is_number n "$OPTARG" 0 9999999999; count=$OPTARG ;;
        t) is_number t "$OPTARG" 1 1024; threads=$OPTARG ;;
        f) is_number f "$OPTARG" 0 8191; first_cpu=$OPTARG ;;
        c) is_number c "$OPTARG" 0 1000000; clones=$OPTARG ;;
        b) is_number b "$OPTARG" 1 1024; burst=$OPTARG ;;
        w) is_number w "$OPTARG" 0 4000000000; delay_ns=$OPTARG ;;
        v) verbose=yes ;;
        x) set -x ;;
        6) ;; # the address says it
        h) usage ;;
        :) echo "$0: -$OPTARG wants a value" >&2; usage ;;
        *) echo "$0: there is no option -$OPTARG" >&2; usage ;;
    esac
done
[ $OPTIND -gt $# ] || { shift $((OPTIND - 1)); echo "$0: '$1' is too much" >&2; usage; }
[ -n "$interface" ] && [ -n "$target" ] || { echo "$0: -i and -d are needed" >&2; usage; }
[ -z "$one_thread" ] || [ "$threads" = 1 ] || fail "one thread only: pktgen_multi.sh has more"
