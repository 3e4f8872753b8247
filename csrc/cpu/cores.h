// Which cores the workers of a pool may run on: all that their caller may, but its own.
//
// A kernel likes to wake a thread where its waker runs. The caller does not sleep, so that both
// share one core, and another lies idle, until the balancer looks some milliseconds later: longer
// than a whole pass. No worker is pinned to one core. Where there are several processes, the
// kernel evens them out over all cores that are left.
#pragma once

#include "common/types.h"

#if defined(__linux__)
#include <sched.h>
#endif

namespace fastbert {

// Of a thread, for others to name it by; 0: unknown.
using thread_number = int;
thread_number this_thread();

class Cores {
  public:
    // Called by the caller of a job before the workers wake: keeps them off its core. `asleep`: a
    // worker sleeps, so there is time to look whether the caller may run elsewhere by now.
    template <typename Threads>
    void follow_caller(const Threads& threads, int count, bool asleep) {
        if (!caller_moved(asleep)) return;
        for (int i = 0; i < count; ++i) allow(threads[i]);
    }

    // Called by a worker within a job: moves it where it still is on the caller's core.
    void step_aside() const;

  private:
    bool caller_moved(bool asleep);
    void allow(thread_number thread) const;

    int caller_ = -1;  // its core; -1: workers may run anywhere
#if defined(__linux__)
    cpu_set_t callers_ = {};  // where the caller may run
    cpu_set_t others_ = {};   // the same without its core
#endif
};

}  // namespace fastbert
