// Numbers and loops that the kernels of this folder share. Nothing is included: NVRTC needs no header of the toolkit for this.
//
// A build defines FP64, FP32, FP16 or BF16: the dtype of `element`, which lies in memory. `real` is what is computed in: double
// for FP64, float otherwise.
#pragma once

#if defined(__CUDACC__)
#define LAUNCHABLE(kernel)  // the driver finds kernels by name; the CPU build needs an entry for each
#endif

typedef long long int64;  // 64 bits on every host, as the caller passes them

union Bits {
    unsigned word;
    float number;
};

#if defined(FP64)
typedef double real;
typedef double element;
__device__ inline real value(element x) { return x; }
__device__ inline element rounded(real x) { return x; }
#elif defined(FP32)
typedef float real;
typedef float element;
__device__ inline real value(element x) { return x; }
__device__ inline element rounded(real x) { return x; }
#elif defined(BF16)
// The upper half of a float32, rounded to nearest, ties to even; a NaN must not become an infinity by that.
typedef float real;
struct element {
    unsigned short bits;
};
__device__ inline real value(element x) {
    Bits b;
    b.word = unsigned(x.bits) << 16;
    return b.number;
}
__device__ inline element rounded(real x) {
    Bits b;
    b.number = x;
    if (x != x) return element{(unsigned short)(b.word >> 16 | 0x40)};
    return element{(unsigned short)((b.word + 0x7fff + (b.word >> 16 & 1)) >> 16)};
}
#elif defined(FP16)
typedef float real;
#if defined(__CUDACC__)
struct element {
    unsigned short bits;
};
__device__ inline real value(element x) {
    real wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
    return wide;
}
__device__ inline element rounded(real x) {
    element narrow;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrow.bits) : "f"(x));
    return narrow;
}
#else
typedef _Float16 element;
__device__ inline real value(element x) { return x; }
__device__ inline element rounded(real x) { return element(x); }
#endif
#else
#error "define one of FP64, FP32, FP16, BF16"
#endif

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

// How far a loop over a state's numbers is unrolled: in full, so that they lie in registers, as long as they fit there.
__device__ constexpr int unrolled(int width) { return width <= 128 ? width : 8; }

// Tokens that a block stages at once: fewer where they are wide, since static shared memory holds 48 KiB.
__device__ constexpr int tokens_of(int width) { return width * int(sizeof(real)) > 512 ? 4 : 16; }

__device__ inline int64 smaller(int64 a, int64 b) { return a < b ? a : b; }

// The sum of x over the lanes of a warp, in every lane.
__device__ inline real warp_sum(real x) {
    for (int apart = WARP / 2; apart > 0; apart /= 2) x += __shfl_xor_sync(ALL_LANES, x, apart);
    return x;
}

__device__ inline real as_real(real x) { return x; }
#if defined(FP16) || defined(BF16)
__device__ inline real as_real(element x) { return value(x); }
#endif

// A sum in PARTS that do not wait for each other: an addition takes four cycles, and few warps share a scheduler here.
constexpr int PARTS = 4;
__device__ inline real total(const real (&part)[PARTS]) { return (part[0] + part[1]) + (part[2] + part[3]); }

// The token of a step: time runs backwards where `reversed`.
__device__ inline int64 token(int64 step, int64 T, int64 reversed) { return reversed ? T - 1 - step : step; }

// Copy the rows of ROWS steps from `start` on, of T in all, into shared memory in the order of the steps; zeros beyond the last.
// `row` is how far apart the rows of two tokens lie. Barriers are the caller's.
template <int ROWS, int NUMBERS, class Number>
__device__ inline void stage(real (&tile)[ROWS][NUMBERS], const Number* from, int64 row, int64 start, int64 T,
                             int64 reversed) {
    for (int x = threadIdx.x; x < ROWS * NUMBERS; x += blockDim.x) {
        const int64 step = start + x / NUMBERS;
        tile[x / NUMBERS][x % NUMBERS] =
            step < T ? as_real(from[token(step, T, reversed) * row + x % NUMBERS]) : real(0);
    }
}

// The same for one number a token and thread, which no other thread reads: the loads of a tile are under way together, where a
// load a step would wait for memory every time.
template <int ROWS, int THREADS, class Number>
__device__ inline void stage_own(real (&tile)[ROWS][THREADS], const Number* from, int64 row, int64 start, int64 T,
                                 int64 reversed, bool mine) {
#pragma unroll
    for (int i = 0; i < ROWS; i++)
        tile[i][threadIdx.x] =
            mine && start + i < T ? as_real(from[token(start + i, T, reversed) * row]) : real(0);
}
