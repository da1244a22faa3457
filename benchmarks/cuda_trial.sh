#!/usr/bin/env bash
# What a first look at the CUDA C++ kernels on a GPU asks, in 100 seconds: versions, exactness and speed, the quick profile.
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
export PYTHONPATH=$PWD LINVERIFY_CACHE_DIR=${LINVERIFY_CACHE_DIR:-$(mktemp -d)}
timeout 50 python3 benchmarks/cuda_kernels.py --device cuda --seconds 38
told=$(mktemp -d)
for target in cuda_causal_product:one_block_per_head cuda_causal_product:low_occupancy cuda_rwkv6:rwkv6 cuda_selective_scan:selective_scan; do
  timeout 48 python3 -m linverify check "linverify.impls.$target" --profile quick --device cuda --time 34 -n 2 > "$told/$target" 2>&1 &
done
wait
for file in "$told"/*; do
  echo "== ${file##*/}"
  grep -v "not applicable\|says nothing\|not offered\|^ *$\|━" "$file" | cut -c1-150
  grep "━" "$file" | sort -k4 -n -r | head -4 | cut -c1-90
done
