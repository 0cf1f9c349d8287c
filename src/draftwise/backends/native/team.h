/* Where the threads of a team wait for each other. OpenMP's own barriers spin for milliseconds, which is long where another process has taken the
   core of the thread that is waited for: it could have this one. So a thread sleeps here, after about as long as parts of one size can differ. */
#pragma once
#include <immintrin.h>
#include <omp.h>
#include <stdint.h>
#include <x86intrin.h>
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#include <sched.h>
#endif

enum { PATIENCE = 60000 }; /* ticks of the processor's clock: some 20 microseconds */

/* All zeros at first. Shared by a team from the beginning to the end of its parallel region. */
struct team {
    int32_t arrived, meeting, asleep;
};

static inline int over(struct team *t, int32_t meeting) { return __atomic_load_n(&t->meeting, __ATOMIC_SEQ_CST) != meeting; }

/* Nobody goes on before all have come. */
static void meet(struct team *t) {
    const int32_t meeting = __atomic_load_n(&t->meeting, __ATOMIC_SEQ_CST);
    if (__atomic_add_fetch(&t->arrived, 1, __ATOMIC_SEQ_CST) == omp_get_num_threads()) {
        __atomic_store_n(&t->arrived, 0, __ATOMIC_SEQ_CST);
        __atomic_store_n(&t->meeting, meeting + 1, __ATOMIC_SEQ_CST);
#if defined(__linux__)
        if (__atomic_load_n(&t->asleep, __ATOMIC_SEQ_CST)) syscall(SYS_futex, &t->meeting, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
#endif
        return;
    }
    const uint64_t came = __rdtsc();
    while (__rdtsc() - came < PATIENCE) {
        if (over(t, meeting)) return;
        _mm_pause();
    }
    __atomic_add_fetch(&t->asleep, 1, __ATOMIC_SEQ_CST); /* whoever comes last sees it, or the call below sees that the meeting is over */
    while (!over(t, meeting)) {
#if defined(__linux__)
        syscall(SYS_futex, &t->meeting, FUTEX_WAIT_PRIVATE, meeting, NULL, NULL, 0);
#else
        sched_yield();
#endif
    }
    __atomic_sub_fetch(&t->asleep, 1, __ATOMIC_SEQ_CST);
}
