# Sourced by the pktgen scripts: talks to the kernel's pktgen through /proc/net/pktgen, and clears up after itself.
# Takes no time.

proc=/proc/net/pktgen
loaded=''
configured=''
sender_pid=''

fail() {
    echo "$0: $*" >&2
    exit 1
}
say() { [ -z "$verbose" ] || echo "$0: $*" >&2; }

# Gives pktgen a command. It answers with an error number; 524, which has no words, is a driver that cannot.
pktgen() {
    local file=$1 said
    shift
    say "$file: $*"
    # The shell's own words, in no other language.
    said=$({ LC_ALL=C; echo "$*" >"$proc/$file"; } 2>&1) && return 0
    said=${said##*error: }
    [ "$said" != "Unknown error 524" ] || said="its driver cannot send a packet more than once"
    fail "pktgen refuses '$*' for $file: $said"
}

# Makes sure that pktgen is there and idle, and the interface can send.
prepare() {
    local link thread
    [ "$(id -u)" = 0 ] || fail "root is needed: sudo $0 …"
    link=$(ip -o link show dev "$interface" 2>/dev/null) || fail "there is no interface $interface: 'ip link' shows those that are"
    [[ "$link" =~ [\<,]UP[,\>] ]] || fail "$interface is down: ip link set dev $interface up"
    [[ "$link" =~ [\<,]LOWER_UP[,\>] ]] || fail "$interface has no carrier: is its cable in, and the other end up?"
    if [ ! -d "$proc" ]; then
        modprobe pktgen 2>/dev/null || [ -d "$proc" ] || fail "Linux $(uname -r) has no pktgen: its module is" \
            "CONFIG_NET_PKTGEN, in Debian's and Ubuntu's own kernels; cloud and container kernels may lack it"
        loaded=yes
    fi
    for thread in "$proc"/kpktgend_*; do
        [ -e "$thread" ] || fail "$proc has no threads: is it that of another network namespace?"
        ! grep -q '^Running: *[^ ]' "$thread" || fail "pktgen is at work already: ${thread##*/} sends"
    done
    for ((cpu = first_cpu; cpu < first_cpu + threads; cpu++)); do
        [ -e "$proc/kpktgend_$cpu" ] || fail "there is no CPU $cpu: -f $first_cpu -t $threads wants it"
    done
    # What a killed run left, on any CPU: "start" has all of them send.
    for thread in "$proc"/kpktgend_*; do echo rem_device_all >"$thread"; done
    [ -n "$target_mac" ] || target_mac=$(resolve) || fail "nobody at $interface answers for $target: give its MAC with -m"
    [[ "$target_mac" =~ ^([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}$ ]] || fail "-m wants a MAC address, not '$target_mac'"
}

# MAC of the next hop to the target; a datagram to the discard port makes the kernel ask for it.
resolve() {
    local hop mac
    hop=$(ip -o route get "$target" oif "$interface" 2>/dev/null | sed -n 's/.* via \([^ ]*\) .*/\1/p') || true
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        mac=$(ip neigh show "${hop:-$target}" dev "$interface" | sed -n 's/.*lladdr \([^ ]*\).*/\1/p')
        [ -z "$mac" ] || { echo "$mac"; return 0; }
        (echo >"/dev/udp/$target/9") 2>/dev/null || true
        sleep 0.2
    done
    return 1
}

# One sender on a CPU; $2 and $3 are its first and last source port, $4 its send queue.
add_sender() {
    local cpu=$1 device="$interface@$1"
    configured=yes
    pktgen "kpktgend_$cpu" "add_device $device"
    pktgen "$device" "count $count"
    pktgen "$device" "clone_skb $clones"
    pktgen "$device" "pkt_size $frame_bytes"
    pktgen "$device" "delay $delay_ns"
    [ "$burst" = 1 ] || pktgen "$device" "burst $burst"
    pktgen "$device" "dst_mac $target_mac"
    if [[ "$target" = *:* ]]; then
        pktgen "$device" "dst6 $target"
    else
        pktgen "$device" "dst_min $target"
        pktgen "$device" "dst_max $target"
    fi
    pktgen "$device" "udp_dst_min $port"
    pktgen "$device" "udp_dst_max $port"
    pktgen "$device" "udp_src_min $2"
    pktgen "$device" "udp_src_max $3"
    [ "$2" = "$3" ] || pktgen "$device" "flag UDPSRC_RND"
    [ -z "$checksums" ] || pktgen "$device" "flag UDPCSUM"
    pktgen "$device" "queue_map_min $4"
    pktgen "$device" "queue_map_max $4"
}

# Sends until all is sent or a signal comes. Whoever writes "start" waits in the kernel, and any signal to it, also that
# a child of it ended, stops every thread: so it is a process of its own that has no children. It ends with this one, even
# when that is killed: else it would send on, and nobody would know whom to tell.
send() {
    trap 'stop' INT TERM HUP
    say "sending"
    setpriv --pdeathsig TERM bash -c 'echo start >"$1"' - "$proc/pgctrl" &
    sender_pid=$!
    while kill -0 "$sender_pid" 2>/dev/null; do wait "$sender_pid" || true; done
    sender_pid=''
}

interrupted=''
stop() {
    interrupted=yes
    [ -z "$sender_pid" ] || kill -TERM "$sender_pid" 2>/dev/null || true
}

is_running() { grep -q '^Running: *[^ ]' "$proc"/kpktgend_*; }

# What each thread sent, and all together.
report() {
    local cpu text sent usec pps errors packets=0 rate=0 failed=0 longest=1 wanted=$((count * threads))
    for ((tries = 0; tries < 50; tries++)); do is_running && sleep 0.1 || break; done
    for ((cpu = first_cpu; cpu < first_cpu + threads; cpu++)); do
        text=$(<"$proc/$interface@$cpu")
        [[ "$text" =~ Result:\ OK:\ ([0-9]+).*usec,\ ([0-9]+)\ \([0-9]+byte.*\ ([0-9]+)pps.*errors:\ ([0-9]+) ]] ||
            fail "CPU $cpu has no result: ${text##*Result: }"
        usec=${BASH_REMATCH[1]} sent=${BASH_REMATCH[2]} pps=${BASH_REMATCH[3]} errors=${BASH_REMATCH[4]}
        echo "CPU $cpu: $sent packets in $((usec / 1000)) ms, $pps a second, $errors errors"
        packets=$((packets + sent)) rate=$((rate + pps)) failed=$((failed + errors))
    done
    echo "total: $packets packets of $frame_bytes bytes, $rate a second, $((rate * (frame_bytes + 24) * 8 / 1000000)) Mbit/s on the wire, $failed errors"
    [ "$count" = 0 ] || [ -n "$interrupted" ] || [ "$packets" -ge "$wanted" ] ||
        fail "stopped at $packets of $wanted packets: did $interface lose its carrier?"
}

# Takes the senders off, and the module if it was loaded here.
clean() {
    stop
    wait
    [ -z "$configured" ] || for ((cpu = first_cpu; cpu < first_cpu + threads; cpu++)); do
        echo rem_device_all >"$proc/kpktgend_$cpu"
    done
    [ -z "$loaded" ] || modprobe -r pktgen 2>/dev/null || true
}
