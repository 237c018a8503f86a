#!/bin/bash
# All rows of the cards that a GPU has to measure, in under ten minutes: pictures against transformers.generate() and the
# share of the memory's pace (GB/s), time to the first token and a step by length, what keys and values take, training
# with its model FLOPs utilisation, and the tests that only run there.
#
#     tools/bench_gpu.sh [--peak-tflops 989] | tee bench_gpu.txt
#
# --peak-tflops: what the GPU can do in bfloat16, for the utilisation; known of some. $PYTHON is the python that runs it.
set -u
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
python=${PYTHON:-python}

if ! name=$("$python" -c 'import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else "")' 2>/dev/null); then
    echo "$python has no torch that can be imported: nothing was measured; name another in \$PYTHON" >&2
    exit 2
fi
if [ -z "$name" ]; then
    echo "no CUDA GPU is found here (torch.cuda.is_available() says no): nothing was measured" >&2
    exit 2
fi
peak=
[ "${1:-}" = --peak-tflops ] && peak=${2:?give a number behind --peak-tflops}
if [ -z "$peak" ]; then
    case "$name" in
        *H100*|*H200*|*GH200*) peak=989 ;;
        *B200*) peak=2250 ;;
        *A100*) peak=312 ;;
        *L40S*) peak=362 ;;
        *4090*) peak=165 ;;
    esac
fi
echo "$name; peak in bfloat16: ${peak:-not known, so no utilisation}"

# What one measurement may take, in seconds; together they stay under ten minutes.
measure() {
    local most=$1
    shift
    echo
    echo "\$ python $*"
    timeout "$most" "$python" "$@"
    local status=$?
    [ $status -eq 0 ] || echo "not measured: exit status $status$([ $status -eq 124 ] && echo ", longer than $most s")"
}

measure 150 tools/bench_generation.py --device cuda --shape 135m --repeats 3 --decoders
measure 60 tools/bench_generation.py --device cuda --shape nano --repeats 3 --decoders
measure 60 tools/bench_generation.py --device cuda --growth --shape 135m --weights model --contexts 128 4096
measure 60 tools/bench_generation.py --device cuda --growth --shape 135m --weights model --kv int8 --contexts 128 4096
measure 90 tools/bench_generation.py --device cuda --growth --shape 135m --weights compiled --contexts 128 4096 --batches 1
measure 100 tools/bench_training.py --rows 16 --precision bfloat16 --repeats 1 ${peak:+--peak-tflops "$peak"}
measure 60 -m pytest -q -p no:cacheprovider -m cuda tests/generation tests/model
