#include "cpu/threads.h"

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cfenv>
#include <chrono>
#include <cstdlib>
#include <new>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

#include "harness.h"

using namespace fastbert;

namespace {

// Runs `tasks` tasks and checks that each ran exactly once, under a worker number in range.
void run_and_check(index_t tasks, int workers) {
    std::vector<std::atomic<int>> runs(static_cast<std::size_t>(tasks));
    std::vector<std::atomic<int>> inside(static_cast<std::size_t>(workers));
    std::atomic<int> mistakes{0};
    parallel_for(tasks, workers, [&](index_t task, int worker) {
        if (worker < 0 || worker >= workers) {
            ++mistakes;
            return;
        }
        if (inside[static_cast<std::size_t>(worker)].fetch_add(1) != 0) ++mistakes;
        runs[static_cast<std::size_t>(task)].fetch_add(1);
        inside[static_cast<std::size_t>(worker)].fetch_sub(1);
    });
    for (const auto& count : runs) mistakes += count.load() != 1;
    CHECK_MSG(mistakes == 0, std::to_string(tasks) + " tasks, " + std::to_string(workers));
}

}  // namespace

TEST(threads_every_task_runs_once) {
    for (int workers : {1, 2, 3, 8}) {
        for (index_t tasks : {0, 1, 2, 7, 100, 1000}) run_and_check(tasks, workers);
    }
}

TEST(threads_parts_cover_everything_larger_ones_first) {
    for (index_t size : {0, 1, 7, 12, 36, 100}) {
        for (index_t parts : {1, 2, 3, 8, 13}) {
            CHECK(part_begin(size, parts, 0) == 0);
            CHECK(part_begin(size, parts, parts) == size);
            index_t before = size;
            for (index_t part = 0; part < parts; ++part) {
                const index_t count =
                    part_begin(size, parts, part + 1) - part_begin(size, parts, part);
                CHECK(count <= before);
                CHECK(count == size / parts || count == size / parts + 1);
                before = count;
            }
        }
    }
}

TEST(threads_many_short_jobs_in_a_region) {
    for (bool in_region : {false, true}) {
        std::atomic<std::int64_t> total{0};
        const auto burst = [&] {
            for (int i = 0; i < 2000; ++i) {
                parallel_for(4, 4, [&](index_t task, int) { total += task + 1; });
            }
        };
        if (in_region) {
            ParallelRegion region;
            burst();
        } else {
            burst();
        }
        CHECK(total == 2000 * 10);
    }
}

// What a task wrote must be visible to the caller without any synchronisation of its own.
TEST(threads_results_are_visible_to_the_caller) {
    std::vector<int> values(4096);
    for (int round = 1; round <= 200; ++round) {
        parallel_for(64, 4, [&](index_t task, int) {
            for (int i = 0; i < 64; ++i) values[static_cast<std::size_t>(task * 64 + i)] = round;
        });
        for (int value : values) CHECK(value == round);
    }
}

TEST(threads_nested_calls_run_inline) {
    std::atomic<int> inner{0}, mistakes{0};
    parallel_for(16, 4, [&](index_t, int) {
        const auto self = std::this_thread::get_id();
        parallel_for(8, 4, [&](index_t, int worker) {
            mistakes += worker != 0 || std::this_thread::get_id() != self;
            ++inner;
        });
    });
    CHECK(inner == 16 * 8);
    CHECK(mistakes == 0);
}

TEST(threads_concurrent_callers) {
    std::vector<std::thread> callers;
    for (int i = 0; i < 4; ++i) {
        callers.emplace_back([] {
            for (int round = 0; round < 200; ++round) run_and_check(23, 3);
        });
    }
    for (std::thread& caller : callers) caller.join();
}

TEST(threads_limit_is_followed_and_checked) {
    const int before = max_threads();
    CHECK(before >= 1);
    set_max_threads(3);
    CHECK(max_threads() == 3);
    std::atomic<int> highest{0};
    parallel_for(200, [&](index_t, int worker) {
        int seen = highest.load();
        while (worker > seen && !highest.compare_exchange_weak(seen, worker)) {
        }
    });
    CHECK(highest.load() <= 2);
    CHECK(!test::message_of([] { set_max_threads(0); }).empty());
    CHECK(max_threads() == 3);
    set_max_threads(before);
}

// A worker without memory must not end the process: whoever called is told, and may go on.
TEST(threads_throw_on_what_a_task_throws) {
    for (int workers : {1, 2, 4}) {
        for (index_t bad : {0, 1, 70}) {
            std::atomic<int> ran{0};
            bool told = false;
            try {
                parallel_for(100, workers, [&](index_t task, int) {
                    if (task >= bad) throw std::bad_alloc();
                    ++ran;
                });
            } catch (const std::bad_alloc&) {
                told = true;
            }
            CHECK(told);
            CHECK(ran == bad);
            run_and_check(100, workers);
        }
    }
}

// The bits of a result would else depend on who computes it.
TEST(threads_compute_in_the_floating_point_state_of_the_caller) {
    run_and_check(100, 4);                         // workers exist before the state changes
    const volatile float one = 1.0f, ten = 10.0f;  // 0.1f is above a tenth, its neighbour below
    for (int mode : {FE_UPWARD, FE_DOWNWARD, FE_TONEAREST}) {
        std::fesetround(mode);
        const float expected = one / ten;
        std::atomic<int> others{0};
        parallel_for(200, 4, [&](index_t, int) { others += one / ten != expected; });
        CHECK(others == 0);
        CHECK((expected < 0.1f) == (mode == FE_DOWNWARD));
    }
}

#if defined(__linux__)
// No worker shares its caller's core where there is another, wherever the caller is moved to.
TEST(threads_leave_the_core_of_their_caller) {
    cpu_set_t all;
    CHECK(sched_getaffinity(0, sizeof all, &all) == 0);
    if (CPU_COUNT(&all) < 2) return;
    const int workers = std::min(CPU_COUNT(&all), 4);
    run_and_check(100, workers);
    for (int round = 0; round < 20; ++round) {
        std::this_thread::sleep_for(std::chrono::milliseconds(2));  // the workers sleep
        std::atomic<int> on_mine{0}, by_others{0};
        const int mine = sched_getcpu();
        const auto caller = std::this_thread::get_id();
        std::atomic<bool> moved{false};
        parallel_for(64, workers, [&](index_t, int) {
            const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(200);
            while (std::chrono::steady_clock::now() < end) {
            }
            if (std::this_thread::get_id() == caller) {
                if (sched_getcpu() != mine) moved = true;
                return;
            }
            ++by_others;
            on_mine += sched_getcpu() == mine;
        });
        if (!moved)
            CHECK_MSG(on_mine == 0,
                      std::to_string(on_mine) + " of " + std::to_string(by_others) + " tasks");
    }
    cpu_set_t after;
    CHECK(sched_getaffinity(0, sizeof after, &after) == 0 && CPU_EQUAL(&all, &after));
}
#endif

#if defined(__SANITIZE_THREAD__)
// ThreadSanitizer does not support threads started in a child of a threaded process.
#else
TEST(threads_work_in_a_forked_child) {
    run_and_check(100, 4);  // the parent's pool exists
    ParallelRegion region;
    const pid_t child = fork();
    if (child == 0) {
        alarm(20);  // a hang becomes a failure
        std::atomic<int> ran{0};
        parallel_for(100, 4, [&](index_t, int) { ++ran; });
        _exit(ran == 100 ? 0 : 1);
    }
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    run_and_check(100, 4);
}
#endif
