#include "cpu/cores.h"

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fastbert {

#if defined(__linux__)

thread_number this_thread() { return static_cast<thread_number>(syscall(SYS_gettid)); }

bool Cores::caller_moved(bool asleep) {
    const int core = sched_getcpu();
    if (core == caller_ && !asleep) return false;
    cpu_set_t allowed;
    // Machines of more than 1024 cores say no, and are left alone.
    if (core < 0 || core >= CPU_SETSIZE || sched_getaffinity(0, sizeof allowed, &allowed) != 0) {
        return false;
    }
    if (core == caller_ && CPU_EQUAL(&allowed, &callers_)) return false;
    // Who has one core only is left alone too: that may be the caller's own choice for itself.
    if (CPU_COUNT(&allowed) < 2) {
        caller_ = -1;
        return false;
    }
    caller_ = core;
    callers_ = others_ = allowed;
    CPU_CLR(static_cast<std::size_t>(core), &others_);
    return true;
}

// Where the kernel refuses (a sandbox may), the worker stays where it is.
void Cores::allow(thread_number thread) const {
    if (thread != 0) sched_setaffinity(thread, sizeof others_, &others_);
}

void Cores::step_aside() const {
    if (caller_ >= 0 && sched_getcpu() == caller_) sched_setaffinity(0, sizeof others_, &others_);
}

#else

thread_number this_thread() { return 0; }
bool Cores::caller_moved(bool) { return false; }
void Cores::allow(thread_number) const {}
void Cores::step_aside() const {}

#endif

}  // namespace fastbert
