#!/usr/bin/env bash
# Ten minutes on one big GPU: tests, bench, a training, a table. All that they write goes to one folder.
#
#     tools/gpu_run.sh FOLDER               # the whole; again, it does what isn't done yet
#     PRESET=portrait tools/gpu_run.sh ...  # trains this preset
#     TRY=1 tools/gpu_run.sh FOLDER         # the same stages on a CPU, as short as they can be: tests this script
#
# A stage leaves NAME.log, NAME.code (its exit code) and NAME.seconds, and NAME.done if it succeeded. A stage that is
# done is skipped. `minimodel` and `pytest` are those of the PATH. Nobody has run this on a GPU yet.
set -u
cd "$(dirname "$0")/.." || exit 2
if [ $# -ne 1 ]; then
    echo "usage: tools/gpu_run.sh FOLDER" >&2
    exit 2
fi
OUT=$1
mkdir -p "$OUT" || exit 2
OUT=$(cd "$OUT" && pwd)

PRESET=${PRESET:-small}
TABLE_PRESET=${TABLE_PRESET:-small}
if [ -n "${TRY:-}" ]; then
    DEVICE=cpu PRESET=tiny TABLE_PRESET=tiny PRESETS="tiny" FRAMES="1 2" BATCH=2 MINUTES=0.02 PAIRS=8 ROWS="affine" ROWS_AT_ONCE=1
    REPLAY=""
else
    DEVICE=cuda PRESETS="tiny small paper" FRAMES="1 32" BATCH=${BATCH:-64} MINUTES=4 PAIRS=${PAIRS:-4000}
    ROWS="affine affine-refined tps tps-refined" ROWS_AT_ONCE=4 REPLAY="--replay"
fi
export MINIMODEL_DEVICE=$DEVICE

# stage NAME SECONDS COMMAND...
stage() {
    local name=$1 limit=$2 began code
    shift 2
    if [ -e "$OUT/$name.done" ]; then
        echo "$name: done before"
        return
    fi
    echo "$name: $*"
    began=$(date +%s)
    timeout --kill-after=10 "$limit" "$@" >"$OUT/$name.log" 2>&1
    code=$?
    echo "$code" >"$OUT/$name.code"
    echo $(($(date +%s) - began)) >"$OUT/$name.seconds"
    if [ "$code" -eq 0 ]; then touch "$OUT/$name.done"; fi
}

{ nvidia-smi; minimodel --version; } >"$OUT/machine.txt" 2>&1
stage tests 130 pytest -q -p no:cacheprovider tests/test_gpu.py tests/test_devices.py tests/test_bench.py
for frames in $FRAMES; do
    # shellcheck disable=SC2086
    stage "bench-$frames" 60 minimodel bench --presets $PRESETS --frames "$frames" --batch 8 $REPLAY --device $DEVICE
done
stage train 290 minimodel train --preset "$PRESET" --minutes "$MINUTES" --batch "$BATCH" --workers 0 \
    --evaluate-minutes 10 --output "$OUT/train" --device $DEVICE
# shellcheck disable=SC2086
stage table 100 minimodel ablate mrfa-3 --preset "$TABLE_PRESET" --rows $ROWS --seeds 0 --pairs "$PAIRS" \
    --parallel $ROWS_AT_ONCE --output "$OUT/table" --device $DEVICE

{
    printf '%-10s %5s %8s\n' stage code seconds
    failed=0
    for name in tests $(for frames in $FRAMES; do echo "bench-$frames"; done) train table; do
        code=$(cat "$OUT/$name.code")
        printf '%-10s %5s %8s\n' "$name" "$code" "$(cat "$OUT/$name.seconds")"
        if [ "$code" -ne 0 ]; then failed=1; fi
    done
    for name in "$OUT"/*.log; do
        printf '\n--- %s\n' "$(basename "$name")"
        tr '\r' '\n' <"$name" | tail -n 25
    done
} >"$OUT/summary.txt"
head -n 8 "$OUT/summary.txt"
exit $failed
