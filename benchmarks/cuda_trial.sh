#!/usr/bin/env bash
# What a look at the CUDA C++ kernels on a GPU asks, in 100 seconds: exactness and speed, the two float64 references, then side by
# side the laws that say most and NVIDIA's race check.
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
export PYTHONPATH=$PWD LINVERIFY_CACHE_DIR=${LINVERIFY_CACHE_DIR:-$(mktemp -d)}
timeout 36 python3 benchmarks/cuda_kernels.py --device cuda --seconds 27
timeout 22 python3 benchmarks/against_gradcheck.py --device cuda:0 --kinds 0 --correct 0 2>/dev/null | grep "^| .[a-z]"
told=$(mktemp -d)
laws=(agreement gradients state_passing packed containment bitwise_repeatable guard_bands)
for target in cuda_causal_product:one_block_per_head cuda_causal_product:low_occupancy cuda_rwkv6:rwkv6 cuda_selective_scan:selective_scan; do
  timeout 40 python3 -m linverify check "linverify.impls.$target" "${laws[@]/#/--property=}" --profile quick --device cuda --time 24 \
    > "$told/$target" 2>&1 &
done
timeout 40 compute-sanitizer --tool racecheck python3 benchmarks/cuda_kernels.py --device cuda --small --seconds 18 > "$told/races" 2>&1 &
wait
for file in "$told"/*; do
  echo "== ${file##*/}"
  grep -v "not applicable\|says nothing\|not offered\|^ *$" "$file" | cut -c1-130 | head -30
done
