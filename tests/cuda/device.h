// What a CUDA kernel's source needs to be built as C++ and run by one processor: indices, shared memory, barriers.
//
// A thread of a block is a fiber. A barrier gives the processor to the next thread of the block; when all have come to
// it, they go on in the same order. The order is not that of their indices, and differs between blocks, so that a
// barrier which is missing shows. Shared memory is filled with NaN before each block, so that reading what was not
// written shows. A block whose threads do not all come to a barrier is an error, as it is on a device.
#pragma once

#include <cmath>
#include <csetjmp>
#include <csignal>
#include <cstring>
#include <ucontext.h>

#define __global__
#define __device__ static inline
#define __launch_bounds__(...)
#define __shared__ static __attribute__((section("cuda_shared")))

struct Dim {
    unsigned x, y, z;
};
static Dim blockIdx, blockDim, threadIdx, gridDim;

extern "C" char __start_cuda_shared[] __attribute__((weak, visibility("hidden")));
extern "C" char __stop_cuda_shared[] __attribute__((weak, visibility("hidden")));

namespace emulator {

constexpr unsigned THREADS_MOST = 1024;
constexpr size_t STACK = 1 << 16;

// A fiber runs one thread of each block after another. It is started once, and from then on is left and gone on with by
// jumps, which take no system call.
struct Fiber {
    jmp_buf place;
    bool started, finished;
};

static Fiber fibers[THREADS_MOST];
static char *stacks;
static jmp_buf scheduler;
static sigjmp_buf outside;
static unsigned current;
static void (*body)(void **);
static void **arguments;

__attribute__((noinline)) static void leave(unsigned thread) {
    if (!_setjmp(fibers[thread].place)) _longjmp(scheduler, 1);
}

static void run_fiber() {
    const unsigned thread = current;
    for (;;) {
        body(arguments);
        fibers[thread].finished = true;
        leave(thread);
    }
}

__attribute__((noinline)) static void go_on(unsigned thread) {
    if (_setjmp(scheduler)) return;
    if (fibers[thread].started) _longjmp(fibers[thread].place, 1);
    fibers[thread].started = true;
    static ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = stacks + thread * STACK;
    context.uc_stack.ss_size = STACK;
    context.uc_link = nullptr;
    makecontext(&context, run_fiber, 0);
    setcontext(&context);
}

// Run all threads of a block; false where some had ended and others waited at a barrier.
static bool run_block(unsigned threads) {
    if (__start_cuda_shared) std::memset(__start_cuda_shared, 0xff, __stop_cuda_shared - __start_cuda_shared);
    for (unsigned i = 0; i < threads; i++) fibers[i].finished = false;
    const unsigned shift = (blockIdx.x * 7919u) % threads;
    for (;;) {
        unsigned ended = 0;
        for (unsigned i = 0; i < threads; i++) {
            current = (i + shift) % threads;
            if (blockIdx.x % 2) current = threads - 1 - current;
            threadIdx = {current % blockDim.x, current / blockDim.x, 0};
            go_on(current);
            ended += fibers[current].finished;
        }
        if (ended == threads) return true;
        if (ended) return false;
    }
}

// A page that nobody may touch stands behind every array, and a trap behind whatever C++ leaves undefined.
static void touched(int) { siglongjmp(outside, 2); }
static void trapped(int) { siglongjmp(outside, 3); }

static int run_grid(unsigned blocks, unsigned threads) {
    if (const int problem = sigsetjmp(outside, 1)) return problem;
    for (unsigned block = blocks; block-- > 0;) {
        blockIdx = {block, 0, 0};
        if (!run_block(threads)) return 1;
    }
    return 0;
}

// 0, or 1 where threads of a block did not all come to a barrier, 2 where one went beyond an array, 3 where one did what
// has no meaning.
static int launch(void (*kernel)(void **), unsigned blocks, unsigned width, unsigned height, void **given) {
    if (!stacks) stacks = new char[THREADS_MOST * STACK];
    body = kernel, arguments = given;
    blockDim = {width, height, 1}, gridDim = {blocks, 1, 1};
    const int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGTRAP};
    struct sigaction ours = {}, before[4];
    for (int i = 0; i < 4; i++) {
        ours.sa_handler = i < 2 ? touched : trapped;
        sigaction(signals[i], &ours, &before[i]);
    }
    const int failed = run_grid(blocks, width * height);
    for (int i = 0; i < 4; i++) sigaction(signals[i], &before[i], nullptr);
    if (failed)
        for (Fiber &fiber : fibers) fiber.started = false;  // what was going on is given up
    return failed;
}

}  // namespace emulator

static inline void __syncthreads() {
    // Other threads run meanwhile: the index is this one's again afterwards.
    const unsigned thread = emulator::current;
    const Dim index = threadIdx;
    emulator::leave(thread);
    threadIdx = index;
}
