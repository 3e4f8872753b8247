#include "cpu/threads.h"

#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

#include "cpu/cores.h"
#include "cpu/float_state.h"

namespace fastbert {
namespace {

constexpr int most_threads = 1024;

// About 50 microseconds of pauses on current CPUs (a pause takes 20 to 60 ns): longer than the
// single-threaded stretches inside a forward pass, far shorter than the gap between two passes.
constexpr int spins_in_region = 1500;
constexpr int spins_at_join = 4000;

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

int usable_cpus() {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
    const unsigned count = std::thread::hardware_concurrency();
    return count == 0 ? 1 : static_cast<int>(count);
}

struct Job {
    TaskFn fn = nullptr;
    void* context = nullptr;
    index_t tasks = 0;
    int workers = 0;
    std::uint64_t float_state = 0;  // the caller's, which its tasks are computed in
};

// The state word says, in one atomic value, whether a job may be joined and by how many it has
// been, so that the caller can close it without waiting for workers that have not woken up yet: a
// short job never pays for a sleeping or descheduled thread.
//   bit 0: open;  bits 1..15: workers inside;  bits 16..: job number
constexpr std::uint64_t open_bit = 1;
constexpr std::uint64_t one_inside = 2;
constexpr std::uint64_t inside_mask = 0xfffe;
constexpr std::uint64_t next_job = 0x10000;

class Pool {
  public:
    // False when the pool is busy with another caller. Throws what the first task to throw threw.
    bool run(const Job& job) {
        if (busy_.exchange(true, std::memory_order_acquire)) return false;
        start_workers(job.workers);
        job_ = job;
        cores_.follow_caller(threads_, started_, sleepers_.load(std::memory_order_relaxed) > 0);
        next_.store(0, std::memory_order_relaxed);
        const std::uint64_t number =
            state_.load(std::memory_order_relaxed) & ~std::uint64_t{0xffff};
        state_.store((number + next_job) | open_bit, std::memory_order_seq_cst);
        if (sleepers_.load(std::memory_order_seq_cst) > 0) {
            // Empty critical section: a worker between its last look and its sleep holds the mutex.
            {
                std::lock_guard<std::mutex> lock(mutex_);
            }
            wake_.notify_all();
        }
        take_tasks(0);
        state_.fetch_and(~open_bit, std::memory_order_acq_rel);
        wait_until_empty();
        failed_.store(false, std::memory_order_relaxed);
        const std::exception_ptr error = std::exchange(error_, nullptr);
        busy_.store(false, std::memory_order_release);
        if (error != nullptr) std::rethrow_exception(error);
        return true;
    }

    std::atomic<int> regions{0};

  private:
    void start_workers(int wanted) {
        while (started_ < wanted - 1) {
            try {
                const int id = started_ + 1;
                std::thread([this, id] { work(id); }).detach();
            } catch (const std::exception&) {
                return;  // no more threads to be had: fewer take part, with the same results
            }
            ++started_;
        }
    }

    void take_tasks(int worker) {
        for (;;) {
            const index_t task = next_.fetch_add(1, std::memory_order_relaxed);
            if (task >= job_.tasks) return;
            try {
                job_.fn(job_.context, task, worker);
            } catch (...) {
                if (!failed_.exchange(true, std::memory_order_relaxed)) {
                    error_ = std::current_exception();
                }
                next_.store(job_.tasks, std::memory_order_relaxed);  // the rest is not begun
                return;
            }
        }
    }

    bool join(std::uint64_t& seen) {
        std::uint64_t state = state_.load(std::memory_order_seq_cst);
        while ((state & open_bit) && state / next_job != seen) {
            if (state_.compare_exchange_weak(state, state + one_inside,
                                             std::memory_order_acq_rel)) {
                seen = state / next_job;
                return true;
            }
        }
        return false;
    }

    void work(int id);

    void leave() {
        // The last one out of a closed job wakes a caller that gave up spinning.
        const std::uint64_t left =
            state_.fetch_sub(one_inside, std::memory_order_seq_cst) - one_inside;
        if ((left & (inside_mask | open_bit)) == 0 &&
            caller_sleeps_.load(std::memory_order_seq_cst)) {
            {
                std::lock_guard<std::mutex> lock(mutex_);
            }
            done_.notify_one();
        }
    }

    bool nobody_inside() { return (state_.load(std::memory_order_seq_cst) & inside_mask) == 0; }

    void wait_until_empty() {
        for (int i = 0; i < spins_at_join; ++i) {
            if (nobody_inside()) return;
            pause();
        }
        std::unique_lock<std::mutex> lock(mutex_);
        caller_sleeps_.store(true, std::memory_order_seq_cst);
        done_.wait(lock, [this] { return nobody_inside(); });
        caller_sleeps_.store(false, std::memory_order_relaxed);
    }

    bool something_new(std::uint64_t seen) {
        const std::uint64_t state = state_.load(std::memory_order_seq_cst);
        return (state & open_bit) && state / next_job != seen;
    }

    alignas(64) std::atomic<std::uint64_t> state_{0};
    alignas(64) std::atomic<index_t> next_{0};
    alignas(64) Job job_;
    int started_ = 0;
    std::atomic<thread_number> threads_[most_threads] = {};
    Cores cores_;
    std::atomic<bool> failed_{false};
    std::exception_ptr error_;  // of whoever set failed_
    std::atomic<bool> busy_{false};
    std::atomic<bool> caller_sleeps_{false};
    std::atomic<int> sleepers_{0};
    std::mutex mutex_;
    std::condition_variable wake_;
    std::condition_variable done_;
};

thread_local bool inside_task = false;

void Pool::work(int id) {
    inside_task = true;
    threads_[id - 1].store(this_thread(), std::memory_order_relaxed);
    std::uint64_t seen = 0;
    for (;;) {
        if (join(seen)) {
            // A job for fewer workers than exist: those above its limit only pass through.
            if (id < job_.workers) {
                cores_.step_aside();
                set_float_state(job_.float_state);
                take_tasks(id);
            }
            leave();
            continue;
        }
        bool found = false;
        for (int i = 0; i < spins_in_region && regions.load(std::memory_order_relaxed) > 0; ++i) {
            if ((found = something_new(seen))) break;
            pause();
        }
        if (found) continue;
        std::unique_lock<std::mutex> lock(mutex_);
        sleepers_.fetch_add(1, std::memory_order_seq_cst);
        wake_.wait(lock, [this, seen] { return something_new(seen); });
        sleepers_.fetch_sub(1, std::memory_order_relaxed);
    }
}

// Never destroyed: its detached threads sleep until the process ends. A forked child has none of
// them, so it starts afresh with a pool of its own and leaves the copy of the old one alone.
std::atomic<Pool*> the_pool{nullptr};
std::atomic<int> thread_limit{0};

void forget_pool_in_child() { the_pool.store(nullptr, std::memory_order_relaxed); }
// While the library is loaded, rather than on first use: another thread may fork meanwhile.
const int registered = pthread_atfork(nullptr, nullptr, forget_pool_in_child);

Pool& pool() {
    (void)registered;
    Pool* current = the_pool.load(std::memory_order_acquire);
    if (current != nullptr) return *current;
    Pool* fresh = new Pool;
    if (the_pool.compare_exchange_strong(current, fresh, std::memory_order_acq_rel)) return *fresh;
    delete fresh;
    return *current;
}

struct InsideTask {
    const bool before = std::exchange(inside_task, true);
    ~InsideTask() { inside_task = before; }
};

}  // namespace

int max_threads() {
    int limit = thread_limit.load(std::memory_order_relaxed);
    if (limit == 0) {
        limit = usable_cpus();
        thread_limit.store(limit, std::memory_order_relaxed);
    }
    return limit;
}

void set_max_threads(int threads) {
    if (threads < 1) {
        throw std::invalid_argument("the number of threads is " + std::to_string(threads) +
                                    "; it must be at least 1.");
    }
    thread_limit.store(threads < most_threads ? threads : most_threads, std::memory_order_relaxed);
}

void parallel_for(index_t tasks, int workers, TaskFn fn, void* context) {
    if (tasks <= 0) return;
    if (tasks < workers) workers = static_cast<int>(tasks);
    if (workers > most_threads) workers = most_threads;
    const InsideTask inside;
    if (workers > 1 && !inside.before && pool().run({fn, context, tasks, workers, float_state()})) {
        return;
    }
    for (index_t task = 0; task < tasks; ++task) fn(context, task, 0);
}

void parallel_for(index_t tasks, TaskFn fn, void* context) {
    parallel_for(tasks, max_threads(), fn, context);
}

ParallelRegion::ParallelRegion() : regions_(&pool().regions) {
    regions_->fetch_add(1, std::memory_order_relaxed);
}
ParallelRegion::~ParallelRegion() { regions_->fetch_sub(1, std::memory_order_relaxed); }

}  // namespace fastbert
