# demo MODE FIXTURES: boots a copy of the root disk; MODE is `shell` or `ask`.
mode=$1
fixtures=$2
work=$(mktemp -d) || exit 125
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
cp "$fixtures/rootfs.ext4" "$work/rootfs.ext4" || exit 125
boot() {
    "$fixtures/openshell-vmm" run --disk "$work/rootfs.ext4" --kernel "$fixtures/vmlinux-sandbox"
}
if [ "$mode" = shell ]; then
    boot
    exit $?
fi

mkfifo "$work/in" || exit 125
: >"$work/out"
boot <"$work/in" >"$work/out" &
guest=$!
exec 3>"$work/in"
# The shell must be up before anything is typed: an unopened serial port drops what it gets.
tries=0
until grep -q 'guest is up' "$work/out"; do
    tries=$((tries + 1))
    if [ $tries -gt 600 ] || ! kill -0 $guest 2>/dev/null; then
        echo "demo: the guest's shell did not come up" >&2
        kill $guest 2>/dev/null
        cat "$work/out"
        exit 1
    fi
    sleep 0.1
done
printf '%s\n' 'uname -a' 'df -h /' 'echo "the guest says $((6 * 7))"' 'exit' >&3
wait $guest
code=$?
cat "$work/out"
exit $code
