// out_t = sum over j <= t of (a_t . b_j) c_j, or over j >= t where `reversed`, for many heads.
//
// a, b [heads, T, WIDTH]; c, out [heads, T, columns]. It is the causal product of fast-transformers, and its backward pass too:
//     dQ = product(dO, V, K),   dK = reversed product(V, dO, Q),   dV = reversed product(K, Q, dO).
//
// The state is S = sum of b_j c_j^T, [WIDTH, columns], in registers; a token first writes to it and then reads from it.
// Two mappings of the same sum:
//   one_block      a block for each head, a thread for each column of S. The tokens' rows are staged once for all columns.
//   low_occupancy  few heads would leave most of the GPU idle. A warp for each column of S, its lanes sharing the rows, so
//                  there are `columns` times as many warps; every read ends in a sum over the lanes.
//
// Source: Katharopoulos et al. 2020, arXiv:2006.16236, algorithm 1; both mappings exist in github.com/idiap/fast-transformers.
#include "device.h"

constexpr int TOKENS = tokens_of(WIDTH), UNROLL = unrolled(WIDTH);
constexpr int COLUMNS = 128;  // threads of a block of `one_block` at most

extern "C" __global__ void one_block(const element* a, const element* b, const element* c, element* out, int64 T,
                                     int64 columns, int64 reversed) {
    __shared__ real readers[TOKENS][WIDTH], writers[TOKENS][WIDTH], written[TOKENS][COLUMNS];
    const int64 head = blockIdx.x;
    a += head * T * WIDTH, b += head * T * WIDTH, c += head * T * columns, out += head * T * columns;
    for (int64 first = 0; first < columns; first += blockDim.x) {
        const int64 column = first + threadIdx.x;
        real state[WIDTH] = {};
        for (int64 start = 0; start < T; start += TOKENS) {
            __syncthreads();  // nobody reads the tile before any more
            stage(readers, a, WIDTH, start, T, reversed);
            stage(writers, b, WIDTH, start, T, reversed);
            stage_own(written, c + column, columns, start, T, reversed, column < columns);
            __syncthreads();
            if (column >= columns) continue;
            const int steps = int(smaller(TOKENS, T - start));
            for (int i = 0; i < steps; i++) {
                real read[PARTS] = {};
#pragma unroll(UNROLL)
                for (int e = 0; e < WIDTH; e++) {
                    state[e] += writers[i][e] * written[i][threadIdx.x];
                    read[e % PARTS] += readers[i][e] * state[e];
                }
                out[token(start + i, T, reversed) * columns + column] = rounded(total(read));
            }
        }
    }
}
LAUNCHABLE(one_block)

extern "C" __global__ void low_occupancy(const element* a, const element* b, const element* c, element* out, int64 T,
                                         int64 columns, int64 reversed) {
    constexpr int SHARE = (WIDTH + WARP - 1) / WARP;  // rows of the state that a lane keeps: lane, lane + 32, ...
    __shared__ real readers[TOKENS][WIDTH], writers[TOKENS][WIDTH];
    const int64 head = blockIdx.x;
    const int lane = threadIdx.x % WARP;
    const int64 column = int64(blockIdx.y) * (blockDim.x / WARP) + threadIdx.x / WARP;
    a += head * T * WIDTH, b += head * T * WIDTH, c += head * T * columns, out += head * T * columns;
    real state[SHARE] = {};
    for (int64 start = 0; start < T; start += TOKENS) {
        __syncthreads();
        stage(readers, a, WIDTH, start, T, reversed);
        stage(writers, b, WIDTH, start, T, reversed);
        __syncthreads();
        if (column >= columns) continue;  // a whole warp or none of it, so the sums below meet all their lanes
        const int steps = int(smaller(TOKENS, T - start));
        // Lane i loads what step i writes: one wait for memory a tile.
        const real held = lane < steps ? value(c[token(start + lane, T, reversed) * columns + column]) : real(0);
#pragma unroll 4
        for (int i = 0; i < steps; i++) {
            const real written = __shfl_sync(ALL_LANES, held, i);
            real read = 0;
#pragma unroll
            for (int s = 0; s < SHARE; s++) {
                const int e = lane + s * WARP;
                if (e < WIDTH) {
                    state[s] += writers[i][e] * written;
                    read += readers[i][e] * state[s];
                }
            }
            read = warp_sum(read);
            if (lane == 0) out[token(start + i, T, reversed) * columns + column] = rounded(read);
        }
    }
}
LAUNCHABLE(low_occupancy)
