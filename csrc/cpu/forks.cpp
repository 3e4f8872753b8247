#include "cpu/forks.h"

#include <pthread.h>

#include "cpu/openmp.h"

namespace fastbert {
namespace {

// The threads of GNU's OpenMP do not exist in a child, whose first parallel loop would wait for
// them for ever: in torch's operators, which stand around the kernels, and in whatever a caller's
// own layers compute. Without a pool there is nobody to wait for, and both processes start a new
// one when they need it. (LLVM's OpenMP forks safely by itself, and loses nothing by this.)
void before_fork() {
    end_openmp_threads();
    fork_safe_mutex().lock();
}

void after_fork() { fork_safe_mutex().unlock(); }

const int registered = pthread_atfork(before_fork, after_fork, after_fork);

}  // namespace

std::mutex& fork_safe_mutex() {
    (void)registered;
    static std::mutex mutex;
    return mutex;
}

}  // namespace fastbert
