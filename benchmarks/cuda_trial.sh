#!/usr/bin/env bash
# What a first look at the CUDA C++ kernels on a GPU asks, in 100 seconds: versions, exactness and speed, the quick profile.
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
export PYTHONPATH=$PWD LINVERIFY_CACHE_DIR=${LINVERIFY_CACHE_DIR:-$(mktemp -d)}
timeout 50 python3 benchmarks/cuda_kernels.py --device cuda --seconds 40
targets=(cuda_causal_product:one_block_per_head cuda_causal_product:low_occupancy cuda_rwkv6:rwkv6 cuda_selective_scan:selective_scan)
timeout 48 python3 -m linverify check "${targets[@]/#/linverify.impls.}" --profile quick --device cuda -n 4 2>&1 |
  grep -v "not applicable\|says nothing\|^ *$" | cut -c1-160
