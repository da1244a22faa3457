// Mamba's selective scan, forward and backward: for each channel d and each of its KEYS states n
//     h_t = exp(dt_t A) h_{t-1} + dt_t u_t B_t,   o_t = scale * sum over n of C_t h_t.
//
// Sequences lie one after the other: u, dt, o [tokens, channels]; B, C [tokens, KEYS]; A [channels, KEYS]; states
// [N, channels, KEYS]. Sequence n has tokens [ends[n], ends[n + 1]); grid.x counts sequences, grid.y groups of WARPS channels.
//
// A warp has a channel, its lanes have time: ITEMS tokens a lane, CHUNK tokens at once. A token is the map h -> decay h + write;
// maps compose, so each lane composes those of its tokens, a scan over the lanes gives every lane the map of all before it, and
// the state before the chunk turns maps into states. The gradient goes the same way with time reversed: with g_t the gradient
// of h_t,  g_t = C_t do_t + exp(dt_{t+1} A) g_{t+1}.
//
// Source: Gu and Dao 2023, arXiv:2312.00752, section 3.3 and algorithm 2.
#include "device.h"

constexpr int WARPS = 8, ITEMS = 4, CHUNK = WARP * ITEMS;

struct Map {
    real decay, write;  // h -> decay * h + write
};
__device__ inline Map then(Map first, Map second) {
    return {first.decay * second.decay, second.decay * first.write + second.write};
}
__device__ inline real apply(Map m, real h) { return m.decay * h + m.write; }

// The map of all lanes before this one (after it, where `reversed`), and that of all lanes.
struct Scanned {
    Map before, all;
};
__device__ inline Scanned scan(Map own, bool reversed) {
    const int lane = threadIdx.x % WARP, rank = reversed ? WARP - 1 - lane : lane;
    for (int apart = 1; apart < WARP; apart *= 2) {
        Map other;
        if (reversed) {
            other.decay = __shfl_down_sync(ALL_LANES, own.decay, apart);
            other.write = __shfl_down_sync(ALL_LANES, own.write, apart);
        } else {
            other.decay = __shfl_up_sync(ALL_LANES, own.decay, apart);
            other.write = __shfl_up_sync(ALL_LANES, own.write, apart);
        }
        if (rank >= apart) own = then(other, own);
    }
    const int last = reversed ? 0 : WARP - 1;
    Scanned s;
    s.all.decay = __shfl_sync(ALL_LANES, own.decay, last);
    s.all.write = __shfl_sync(ALL_LANES, own.write, last);
    if (reversed) {
        s.before.decay = __shfl_down_sync(ALL_LANES, own.decay, 1);
        s.before.write = __shfl_down_sync(ALL_LANES, own.write, 1);
    } else {
        s.before.decay = __shfl_up_sync(ALL_LANES, own.decay, 1);
        s.before.write = __shfl_up_sync(ALL_LANES, own.write, 1);
    }
    if (rank == 0) s.before = {1, 0};
    return s;
}

// The tokens of a lane: step sizes and what is written before B; tokens outside are left out by a step of size 0.
struct Tokens {
    real dt[ITEMS], x[ITEMS], u[ITEMS];
    int64 at[ITEMS];  // in [tokens]; -1 outside
};
__device__ inline Tokens tokens(const element* u, const real* dt, int64 begin, int64 end, int64 channel, int64 channels) {
    Tokens found;
    for (int i = 0; i < ITEMS; i++) {
        const int64 t = begin + threadIdx.x % WARP * ITEMS + i;
        const bool inside = t < end && channel < channels;
        found.at[i] = inside ? t : -1;
        found.dt[i] = inside ? dt[t * channels + channel] : real(0);
        found.u[i] = inside ? value(u[t * channels + channel]) : real(0);
        found.x[i] = found.dt[i] * found.u[i];
    }
    return found;
}
__device__ inline real at_token(const element* rows, int64 t, int n) { return t < 0 ? real(0) : value(rows[t * KEYS + n]); }

// Where the state before the chunk at token `begin` is kept, in [places, channels, KEYS]: sequences share no place.
__device__ inline int64 kept_at(int64 first, int64 begin, int64 channel, int64 channels) {
    return ((first / CHUNK + blockIdx.x + (begin - first) / CHUNK) * channels + channel) * KEYS;
}

// `initial`, `kept` and `final_state` may be null.
extern "C" __global__ void forward(const element* u, const real* dt, const real* A, const element* B, const element* C,
                                   const real* initial, const int64* ends, element* o, real* final_state, real* kept,
                                   int64 channels, double scale) {
    __shared__ real carried[WARPS][KEYS];
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int64 channel = int64(blockIdx.y) * WARPS + warp, first = ends[blockIdx.x], end = ends[blockIdx.x + 1];
    const int64 state = (blockIdx.x * channels + channel) * KEYS;
    if (channel >= channels) return;  // a whole warp, and warps share nothing
    for (int n = lane; n < KEYS; n += WARP) carried[warp][n] = initial ? initial[state + n] : real(0);
    __syncwarp();
    for (int64 begin = first; begin < end; begin += CHUNK) {
        const Tokens t = tokens(u, dt, begin, end, channel, channels);
        real read[ITEMS] = {};
        for (int n = 0; n < KEYS; n++) {
            const real rate = A[channel * KEYS + n], entering = carried[warp][n];
            real decay[ITEMS], write[ITEMS];
            Map own = {1, 0};
            for (int i = 0; i < ITEMS; i++) {
                decay[i] = exp(t.dt[i] * rate);
                write[i] = t.x[i] * at_token(B, t.at[i], n);
                own = then(own, {decay[i], write[i]});
            }
            const Scanned s = scan(own, false);
            real h = apply(s.before, entering);
            for (int i = 0; i < ITEMS; i++) {
                h = decay[i] * h + write[i];
                read[i] += at_token(C, t.at[i], n) * h;
            }
            __syncwarp();  // every lane has read what is written now
            if (lane == 0) {
                if (kept) kept[kept_at(first, begin, channel, channels) + n] = entering;
                carried[warp][n] = apply(s.all, entering);
            }
        }
        for (int i = 0; i < ITEMS; i++)
            if (t.at[i] >= 0) o[t.at[i] * channels + channel] = rounded(real(scale) * read[i]);
        __syncwarp();
    }
    if (final_state)
        for (int n = lane; n < KEYS; n += WARP) final_state[state + n] = carried[warp][n];
}
LAUNCHABLE(forward)

// dB and dC sum over channels: every block adds up its own into dB, dC [groups, tokens, KEYS]. dA is [N, channels, KEYS].
// Nothing is added atomically, so a repeated call gives the same bits. `dfinal` and `dinitial` may be null.
extern "C" __global__ void backward(const element* u, const real* dt, const real* A, const element* B, const element* C,
                                    const element* grad_o, const real* dfinal, const real* kept, const int64* ends,
                                    element* du, real* ddt, real* dA, real* dB, real* dC, real* dinitial, int64 channels,
                                    int64 total, double scale) {
    __shared__ real carried[WARPS][KEYS], rates[WARPS][KEYS], writes[WARPS][CHUNK], reads[WARPS][CHUNK];
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int64 channel = int64(blockIdx.y) * WARPS + warp, first = ends[blockIdx.x], end = ends[blockIdx.x + 1];
    const int64 state = (blockIdx.x * channels + channel) * KEYS;
    const bool mine = channel < channels;  // warps without a channel take part with zeros: the barriers are for all
    for (int n = lane; n < KEYS; n += WARP) {
        carried[warp][n] = dfinal && mine ? dfinal[state + n] : real(0);
        rates[warp][n] = 0;
    }
    __syncwarp();
    for (int64 chunk = (end - first + CHUNK - 1) / CHUNK - 1; chunk >= 0; chunk--) {
        const int64 begin = first + chunk * CHUNK;
        const Tokens t = tokens(u, dt, begin, end, channel, channels);
        real arriving[ITEMS], dx[ITEMS] = {}, dstep[ITEMS] = {};
        for (int i = 0; i < ITEMS; i++)
            arriving[i] = t.at[i] < 0 ? real(0) : real(scale) * value(grad_o[t.at[i] * channels + channel]);
        for (int n = 0; n < KEYS; n++) {
            const real rate = mine ? A[channel * KEYS + n] : real(0);
            const real entering = mine ? kept[kept_at(first, begin, channel, channels) + n] : real(0);
            const real later = carried[warp][n];
            real decay[ITEMS], before[ITEMS], b[ITEMS], up[ITEMS];
            Map own = {1, 0}, back = {1, 0};
            for (int i = 0; i < ITEMS; i++) {
                decay[i] = exp(t.dt[i] * rate);
                b[i] = at_token(B, t.at[i], n);
                up[i] = at_token(C, t.at[i], n) * arriving[i];
                own = then(own, {decay[i], t.x[i] * b[i]});
            }
            // What leaves a token backwards is decay * (up + what enters it), up being C do.
            for (int i = ITEMS - 1; i >= 0; i--) back = then(back, {decay[i], decay[i] * up[i]});
            real h = apply(scan(own, false).before, entering);
            for (int i = 0; i < ITEMS; i++) {
                before[i] = h;
                h = decay[i] * h + t.x[i] * b[i];
                reads[warp][lane * ITEMS + i] = arriving[i] * h;
            }
            const Scanned s = scan(back, true);
            real g = apply(s.before, later), rate_grad = 0;
            for (int i = ITEMS - 1; i >= 0; i--) {
                g += up[i];  // now the gradient of h after this token
                dx[i] += b[i] * g;
                writes[warp][lane * ITEMS + i] = t.x[i] * g;
                const real decay_grad = decay[i] * before[i] * g;
                dstep[i] += rate * decay_grad;
                rate_grad += t.dt[i] * decay_grad;
                g *= decay[i];
            }
            rate_grad = warp_sum(rate_grad);
            __syncwarp();  // every lane has read what is written now
            if (lane == 0) {
                carried[warp][n] = apply(s.all, later);
                rates[warp][n] += rate_grad;
            }
            __syncthreads();
            for (int i = threadIdx.x; i < CHUNK && begin + i < end; i += blockDim.x) {
                real write = 0, read = 0;
                for (int other = 0; other < WARPS; other++) write += writes[other][i], read += reads[other][i];
                const int64 at = (blockIdx.y * total + begin + i) * KEYS + n;
                dB[at] = write;
                dC[at] = read;
            }
            __syncthreads();
        }
        for (int i = 0; i < ITEMS; i++)
            if (t.at[i] >= 0) {
                du[t.at[i] * channels + channel] = rounded(t.dt[i] * dx[i]);
                ddt[t.at[i] * channels + channel] = dstep[i] + t.u[i] * dx[i];
            }
    }
    __syncwarp();
    if (mine)
        for (int n = lane; n < KEYS; n += WARP) {
            dA[state + n] = rates[warp][n];
            if (dinitial) dinitial[state + n] = carried[warp][n];
        }
}
LAUNCHABLE(backward)
