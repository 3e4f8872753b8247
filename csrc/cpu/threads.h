// The library's worker pool. Workers sleep between calls; inside a ParallelRegion they spin for a
// short while first, so that the many small steps of one forward pass do not each pay a wake-up.
#pragma once

#include <atomic>
#include <type_traits>

#include "common/types.h"

namespace fastbert {

// How many threads a call may use, the caller included. Defaults to the CPUs this process may run
// on.
int max_threads();

// At least 1; std::invalid_argument otherwise. Started workers are kept when the number falls.
void set_max_threads(int threads);

using TaskFn = void (*)(void* context, index_t task, int worker);

// Runs fn(context, task, worker) once for every task in [0, tasks), the caller taking part, and
// returns when all are done. `worker` is below `workers`, and no two tasks run at once under one
// worker number: it may index scratch memory. Tasks must write to disjoint places in a way that
// does not depend on `worker`, so that no result depends on the number of threads; for the same
// reason all are computed in the caller's floating-point state (rounding, denormal numbers). Once
// a task throws, no others begin, and parallel_for throws it on. A call from inside a task, or
// while another thread uses the pool, runs all its tasks on the caller as worker 0.
void parallel_for(index_t tasks, int workers, TaskFn fn, void* context);

// The same with max_threads() workers.
void parallel_for(index_t tasks, TaskFn fn, void* context);

// body(task, worker), for lambdas.
template <typename Body>
void parallel_for(index_t tasks, int workers, Body&& body) {
    using Plain = std::remove_reference_t<Body>;
    parallel_for(
        tasks, workers,
        [](void* context, index_t task, int worker) {
            (*static_cast<Plain*>(context))(task, worker);
        },
        const_cast<void*>(static_cast<const void*>(&body)));
}

template <typename Body, typename = std::enable_if_t<!std::is_convertible_v<Body, TaskFn>>>
void parallel_for(index_t tasks, Body&& body) {
    parallel_for(tasks, max_threads(), static_cast<Body&&>(body));
}

// Where part `part` of `size` things in `parts` parts begins; the part ends where the next begins.
// Sizes differ by one at most, larger parts first: handed out in order, they even out over threads
// (12 things in 8 parts of 1, 2, 1, 2, ... gave one of two threads twice the work).
constexpr index_t part_begin(index_t size, index_t parts, index_t part) {
    const index_t larger = size % parts;
    return part * (size / parts) + (part < larger ? part : larger);
}

// While one exists, idle workers spin for a few tens of microseconds before they sleep.
class ParallelRegion {
  public:
    ParallelRegion();
    ~ParallelRegion();
    ParallelRegion(const ParallelRegion&) = delete;
    ParallelRegion& operator=(const ParallelRegion&) = delete;

  private:
    std::atomic<int>* regions_;  // of the pool it was made in: a fork may replace the pool
};

}  // namespace fastbert
