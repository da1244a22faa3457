// RWKV-6, token by token, forward and backward:
//     o_t = c q_t^T (S_{t-1} + (u * k_t) v_t^T),   S_t = diag(exp(w_t)) S_{t-1} + k_t v_t^T.
//
// Sequences lie one after the other: q, k, w [tokens, H, KEYS], v, o [tokens, H, VALUES], states [N, H, KEYS, VALUES]. Sequence n
// has tokens [ends[n], ends[n + 1]); a dense batch is N sequences of the same length. grid.x counts sequences and heads.
//
// The state is [KEYS, VALUES]. What sums over keys (o, dv) gives a thread a column of it, what sums over values (dq, dk, dw)
// a row, so no sum crosses threads and every result comes out in one order.
//
// Source: Peng et al. 2024, arXiv:2404.05892, section 4. With G_t the gradient of S_t,
//     dq_t = c (S_{t-1} do_t + (u * k_t) (v_t . do_t))            dk_t = G_t v_t + c (u * q_t) (v_t . do_t)
//     dv_t = G_t^T k_t + c (q_t . (u * k_t)) do_t                 dw_t = exp(w_t) * rowsum(S_{t-1} * G_t)
//     du  += c (q_t * k_t) (v_t . do_t)                           G_{t-1} = diag(exp(w_t)) G_t + c q_t do_t^T
#include "device.h"

constexpr int TOKENS = tokens_of(KEYS > VALUES ? KEYS : VALUES);
constexpr int UNROLL_KEYS = unrolled(KEYS), UNROLL_VALUES = unrolled(VALUES);
constexpr int THREADS = 64;  // of a block at most
constexpr int SEGMENT = 64;  // tokens between two states that the forward pass keeps for the backward pass

struct Sequence {
    int64 number, head, begin, length;
    int64 state;    // of its first number in [N, H, KEYS, VALUES]
    int64 segment;  // its first place among kept states: no two sequences share one, whatever their lengths
};

__device__ inline Sequence sequence(const int64* ends, int64 H) {
    const int64 n = blockIdx.x / H, head = blockIdx.x % H, begin = ends[n];
    return {n, head, begin, ends[n + 1] - begin, blockIdx.x * int64(KEYS) * VALUES, begin / SEGMENT + n};
}

// Where the state kept before step `step` lies in [places, H, KEYS, VALUES].
__device__ inline int64 kept_at(const Sequence& s, int64 H, int64 step) {
    return ((s.segment + step / SEGMENT) * H + s.head) * KEYS * VALUES;
}

// Make decays of staged log gates: every thread of those that it staged itself, so no barrier lies between.
__device__ inline void exponentiate(real (&tile)[TOKENS][KEYS]) {
    for (int x = threadIdx.x; x < TOKENS * KEYS; x += blockDim.x) tile[x / KEYS][x % KEYS] = exp(tile[x / KEYS][x % KEYS]);
}

// A thread for a column. `initial`, `kept` and `final_state` may be null.
extern "C" __global__ void forward(const element* q, const element* k, const element* v, const real* w, const real* u,
                                   const real* initial, const int64* ends, element* o, real* final_state, real* kept,
                                   int64 H, double scale) {
    __shared__ real queries[TOKENS][KEYS], keys[TOKENS][KEYS], decays[TOKENS][KEYS], bonus[1][KEYS];
    __shared__ real written[TOKENS][THREADS];
    const Sequence s = sequence(ends, H);
    const int64 column = int64(blockIdx.y) * blockDim.x + threadIdx.x;
    const bool mine = column < VALUES;
    q += (s.begin * H + s.head) * KEYS, k += (s.begin * H + s.head) * KEYS, w += (s.begin * H + s.head) * KEYS;
    v += (s.begin * H + s.head) * VALUES, o += (s.begin * H + s.head) * VALUES;
    stage(bonus, u + s.head * KEYS, KEYS, 0, 1, 0);
    real state[KEYS] = {};
    if (initial && mine)
        for (int i = 0; i < KEYS; i++) state[i] = initial[s.state + i * VALUES + column];
    for (int64 start = 0; start < s.length; start += TOKENS) {
        __syncthreads();  // nobody reads the tile before any more
        stage(queries, q, H * KEYS, start, s.length, 0);
        stage(keys, k, H * KEYS, start, s.length, 0);
        stage(decays, w, H * KEYS, start, s.length, 0);
        exponentiate(decays);
        stage_own(written, v + column, H * VALUES, start, s.length, 0, mine);
        __syncthreads();
        if (!mine) continue;
        if (kept && start % SEGMENT == 0)
            for (int i = 0; i < KEYS; i++) kept[kept_at(s, H, start) + i * VALUES + column] = state[i];
        const int steps = int(smaller(TOKENS, s.length - start));
        for (int t = 0; t < steps; t++) {
            real read[PARTS] = {};
#pragma unroll(UNROLL_KEYS)
            for (int i = 0; i < KEYS; i++) {
                const real write = keys[t][i] * written[t][threadIdx.x];
                read[i % PARTS] += queries[t][i] * (state[i] + bonus[0][i] * write);
                state[i] = decays[t][i] * state[i] + write;
            }
            o[(start + t) * H * VALUES + column] = rounded(real(scale) * total(read));
        }
    }
    if (final_state && mine)
        for (int i = 0; i < KEYS; i++) final_state[s.state + i * VALUES + column] = state[i];
}
LAUNCHABLE(forward)

// dv and the gradient of the initial state: a thread for a column of G, backwards in time. `dfinal` and `dinitial` may be null.
extern "C" __global__ void backward_values(const element* q, const element* k, const real* w, const real* u,
                                           const element* grad_o, const real* dfinal, const int64* ends, element* dv,
                                           real* dinitial, int64 H, double scale) {
    __shared__ real queries[TOKENS][KEYS], keys[TOKENS][KEYS], decays[TOKENS][KEYS], bonus[1][KEYS];
    __shared__ real arriving[TOKENS][THREADS];
    const Sequence s = sequence(ends, H);
    const int64 column = int64(blockIdx.y) * blockDim.x + threadIdx.x;
    const bool mine = column < VALUES;
    q += (s.begin * H + s.head) * KEYS, k += (s.begin * H + s.head) * KEYS, w += (s.begin * H + s.head) * KEYS;
    grad_o += (s.begin * H + s.head) * VALUES, dv += (s.begin * H + s.head) * VALUES;
    stage(bonus, u + s.head * KEYS, KEYS, 0, 1, 0);
    real grad[KEYS] = {};
    if (dfinal && mine)
        for (int i = 0; i < KEYS; i++) grad[i] = dfinal[s.state + i * VALUES + column];
    for (int64 start = 0; start < s.length; start += TOKENS) {
        __syncthreads();
        stage(queries, q, H * KEYS, start, s.length, 1);
        stage(keys, k, H * KEYS, start, s.length, 1);
        stage(decays, w, H * KEYS, start, s.length, 1);
        exponentiate(decays);
        stage_own(arriving, grad_o + column, H * VALUES, start, s.length, 1, mine);
        __syncthreads();
        if (!mine) continue;
        const int steps = int(smaller(TOKENS, s.length - start));
        for (int t = 0; t < steps; t++) {
            const real up = real(scale) * arriving[t][threadIdx.x];
            real sum[PARTS] = {};
#pragma unroll(UNROLL_KEYS)
            for (int i = 0; i < KEYS; i++) {
                const real read = queries[t][i] * up;
                sum[i % PARTS] += keys[t][i] * (grad[i] + bonus[0][i] * read);
                grad[i] = decays[t][i] * grad[i] + read;
            }
            dv[token(start + t, s.length, 1) * H * VALUES + column] = rounded(total(sum));
        }
    }
    if (dinitial && mine)
        for (int i = 0; i < KEYS; i++) dinitial[s.state + i * VALUES + column] = grad[i];
}
LAUNCHABLE(backward_values)

// dq, dk, dw and each sequence's share of du, [N, H, KEYS]: a thread for a row of S and of G. dw needs the state before a token
// and the gradient after it. So the states of a segment are made again, from the one that was kept before it, into `scratch`
// [blocks, SEGMENT, VALUES, KEYS], and then G passes over the segment. Running sums of q dq - k dk give dw too, without any
// state, but leave the rounding error of the whole sequence in the gradient of a strong gate.
extern "C" __global__ void backward_keys(const element* q, const element* k, const element* v, const real* w, const real* u,
                                         const element* grad_o, const real* dfinal, const real* kept, const int64* ends,
                                         element* dq, element* dk, real* dw, real* du, real* scratch, int64 H, double scale) {
    __shared__ real values[TOKENS][VALUES], grads[TOKENS][VALUES];
    __shared__ real queries[TOKENS][THREADS], keys[TOKENS][THREADS], gates[TOKENS][THREADS];  // of this thread's row
    const Sequence s = sequence(ends, H);
    const int64 row = int64(blockIdx.y) * blockDim.x + threadIdx.x;
    const bool mine = row < KEYS;
    const int64 first = (s.begin * H + s.head) * KEYS + row, step = H * KEYS;
    v += (s.begin * H + s.head) * VALUES, grad_o += (s.begin * H + s.head) * VALUES;
    scratch += blockIdx.x * int64(SEGMENT) * VALUES * KEYS + row;
    const real bonus = mine ? u[s.head * KEYS + row] : real(0);
    real bonus_grad = 0;
    real grad[VALUES] = {};
    if (dfinal && mine)
        for (int j = 0; j < VALUES; j++) grad[j] = dfinal[s.state + row * VALUES + j];
    for (int64 segment = (s.length - 1) / SEGMENT; s.length && segment >= 0; segment--) {
        const int64 from = segment * SEGMENT, length = smaller(SEGMENT, s.length - from);
        real state[VALUES] = {};
        if (mine)
            for (int j = 0; j < VALUES; j++) state[j] = kept[kept_at(s, H, from) + row * VALUES + j];
        for (int64 start = 0; start < length; start += TOKENS) {
            __syncthreads();
            stage(values, v + from * H * VALUES, H * VALUES, start, length, 0);
            stage(grads, grad_o + from * H * VALUES, H * VALUES, start, length, 0);
            stage_own(queries, q + first + from * step, step, start, length, 0, mine);
            stage_own(keys, k + first + from * step, step, start, length, 0, mine);
            stage_own(gates, w + first + from * step, step, start, length, 0, mine);
            __syncthreads();
            if (!mine) continue;
            const int steps = int(smaller(TOKENS, length - start));
            for (int t = 0; t < steps; t++) {
                const int64 at = first + (from + start + t) * step;
                const real key = keys[t][threadIdx.x], decay = exp(gates[t][threadIdx.x]);
                real read[PARTS] = {}, own[PARTS] = {};
#pragma unroll(UNROLL_VALUES)
                for (int j = 0; j < VALUES; j++) {
                    scratch[((start + t) * VALUES + j) * KEYS] = state[j];
                    read[j % PARTS] += state[j] * grads[t][j];
                    own[j % PARTS] += values[t][j] * grads[t][j];
                    state[j] = decay * state[j] + key * values[t][j];
                }
                dq[at] = rounded(real(scale) * (total(read) + bonus * key * total(own)));
                bonus_grad += real(scale) * queries[t][threadIdx.x] * key * total(own);
            }
        }
        for (int64 start = 0; start < length; start += TOKENS) {
            __syncthreads();
            stage(values, v + from * H * VALUES, H * VALUES, start, length, 1);
            stage(grads, grad_o + from * H * VALUES, H * VALUES, start, length, 1);
            stage_own(queries, q + first + from * step, step, start, length, 1, mine);
            stage_own(keys, k + first + from * step, step, start, length, 1, mine);
            stage_own(gates, w + first + from * step, step, start, length, 1, mine);
            __syncthreads();
            if (!mine) continue;
            const int steps = int(smaller(TOKENS, length - start));
            for (int t = 0; t < steps; t++) {
                const int64 inside = token(start + t, length, 1), at = first + (from + inside) * step;
                const real query = real(scale) * queries[t][threadIdx.x], decay = exp(gates[t][threadIdx.x]);
                real write[PARTS] = {}, product[PARTS] = {}, own[PARTS] = {};
#pragma unroll(UNROLL_VALUES)
                for (int j = 0; j < VALUES; j++) {
                    write[j % PARTS] += grad[j] * values[t][j];
                    product[j % PARTS] += grad[j] * scratch[(inside * VALUES + j) * KEYS];
                    own[j % PARTS] += values[t][j] * grads[t][j];
                    grad[j] = decay * grad[j] + query * grads[t][j];
                }
                dk[at] = rounded(total(write) + bonus * query * total(own));
                dw[at] = decay * total(product);
            }
        }
    }
    if (mine) du[(s.number * H + s.head) * KEYS + row] = bonus_grad;
}
LAUNCHABLE(backward_keys)
