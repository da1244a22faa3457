// The part of CUDA that the kernels of this folder use, for a C++ compiler on Linux: the same sources then run on the CPU.
//
// Every thread of a block is a fibre with a stack of its own. A fibre runs until it meets a barrier and hands over to the next
// one; the last hands back to the first. So all threads pass a barrier before any of them goes on, which is what the barrier
// promises. Lanes of a warp hand over within their warp. Threads run in the same order every time: a result that lacks a
// barrier is wrong in every run alike, and threads that meet different barriers are an error here, not a hang.
//
// Blocks run one after the other; so do launches of one build, whichever thread they come from. ucontext starts a fibre, and
// _setjmp and _longjmp change between fibres without a system call, in some 15 ns.
#pragma once

#include <csetjmp>
#include <cmath>
#include <memory>
#include <mutex>
#include <utility>

#include <ucontext.h>

#define __global__
#define __device__
#define __shared__ static

struct Place {
    unsigned x = 0, y = 0, z = 0;
};
static Place threadIdx, blockIdx, blockDim, gridDim;

using std::exp;

// Without a name outside: several builds live in one process, and none may see the fibres of another.
namespace {
namespace host {

constexpr unsigned THREADS = 1024, LANES = 32;
// No power of two: all stacks would compete for the same few lines of a cache.
constexpr std::size_t STACK = (1 << 17) + 13 * 64;

struct Fibre {
    ucontext_t start;
    jmp_buf at;
    bool fresh, over;
};

// Of the block that is running.
static Fibre* fibres;
static unsigned running;
static void (*work)(void*);
static void* context;
static jmp_buf caller;
// What the lanes show each other: two sets in turn, so that one hand-over serves a shuffle.
static double shown[2][THREADS];
static unsigned char turn[THREADS];

enum Outcome { DONE = 1, DIVERGED = 2 };

[[noreturn]] inline void resume(unsigned next) {
    Fibre& fibre = fibres[next];
    if (fibre.over) _longjmp(caller, DIVERGED);
    running = threadIdx.x = next;
    if (!fibre.fresh) _longjmp(fibre.at, 1);
    fibre.fresh = false;
    setcontext(&fibre.start);
    __builtin_unreachable();
}

__attribute__((noinline)) inline void hand_over(unsigned next) {
    if (!_setjmp(fibres[running].at)) resume(next);
}

inline void body() {
    work(context);
    fibres[running].over = true;
    if (running + 1 == blockDim.x) {
        for (unsigned i = 0; i < blockDim.x; i++)
            if (!fibres[i].over) _longjmp(caller, DIVERGED);
        _longjmp(caller, DONE);
    }
    resume(running + 1);
}

inline Outcome run_block() {
    for (unsigned i = 0; i < blockDim.x; i++) {
        fibres[i].fresh = true;
        fibres[i].over = false;
        turn[i] = 0;
    }
    const int outcome = _setjmp(caller);
    if (!outcome) resume(0);
    return Outcome(outcome);
}

// Run every block of a grid; 0 where all went well.
inline int run(void (*block)(void*), void* arguments, unsigned x, unsigned y, unsigned threads) {
    if (!threads || threads > THREADS || threads % LANES) return 1;
    static std::mutex turns;
    const std::lock_guard<std::mutex> mine(turns);
    static std::unique_ptr<char[]> stacks;
    static std::unique_ptr<Fibre[]> made;
    static unsigned ready = 0;
    if (ready < threads) {
        stacks.reset(new char[threads * STACK]);
        made.reset(new Fibre[threads]);
        ready = threads;
        for (unsigned i = 0; i < threads; i++) {
            getcontext(&made[i].start);
            made[i].start.uc_stack.ss_sp = stacks.get() + i * STACK;
            made[i].start.uc_stack.ss_size = STACK;
            made[i].start.uc_link = nullptr;
            makecontext(&made[i].start, body, 0);
        }
    }
    fibres = made.get();
    work = block;
    context = arguments;
    gridDim = {x, y, 1};
    blockDim = {threads, 1, 1};
    for (blockIdx.y = 0; blockIdx.y < y; blockIdx.y++)
        for (blockIdx.x = 0; blockIdx.x < x; blockIdx.x++)
            if (run_block() != DONE) return DIVERGED;
    return 0;
}

template <class Number>
Number shuffle(Number x, int lane) {
    const unsigned me = running, first = me / LANES * LANES, set = turn[me] ^= 1;
    shown[set][me] = x;
    hand_over(first + (me - first + 1) % LANES);
    return lane < 0 || lane >= int(LANES) ? x : Number(shown[set][first + lane]);
}

template <class... A, std::size_t... I>
void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<A*>(arguments[I])...);
}

template <auto kernel, class... A>
void block(void* arguments, void (*)(A...)) {
    call(kernel, static_cast<void**>(arguments), std::index_sequence_for<A...>{});
}

}  // namespace host
}  // namespace

static inline void __syncthreads() { host::hand_over((host::running + 1) % blockDim.x); }
static inline void __syncwarp() { host::shuffle(0, 0); }
template <class Number>
static Number __shfl_xor_sync(unsigned, Number x, int apart) {
    return host::shuffle(x, int(threadIdx.x % host::LANES) ^ apart);
}
template <class Number>
static Number __shfl_up_sync(unsigned, Number x, int apart) {
    return host::shuffle(x, int(threadIdx.x % host::LANES) - apart);
}
template <class Number>
static Number __shfl_down_sync(unsigned, Number x, int apart) {
    return host::shuffle(x, int(threadIdx.x % host::LANES) + apart);
}
template <class Number>
static Number __shfl_sync(unsigned, Number x, int lane) {
    return host::shuffle(x, lane);
}

// What the loader calls in place of a launch: arguments as addresses, the way cuLaunchKernel takes them.
#define LAUNCHABLE(kernel)                                                                                        \
    extern "C" __attribute__((visibility("default"))) int launch_##kernel(long long x, long long y, long long threads, void** arguments) {              \
        return host::run([](void* a) { host::block<kernel>(a, kernel); }, arguments, unsigned(x), unsigned(y), \
                         unsigned(threads));                                                                     \
    }
