// The threads that torch's operators run on: those of OpenMP, and of MKL on top of them.
#pragma once

namespace fastbert {

// Ends the threads that wait for the calling thread's next parallel loop; within one it does
// nothing. The next loop starts new ones.
void end_openmp_threads();

// Threads that loops of the calling thread take; -1 for a library that the process has not loaded.
struct LoopThreads {
    int openmp = -1;
    int mkl = -1;  // 0: as many as OpenMP had at first
};

// Lets the calling thread's loops run on it alone; other threads' are as before. Returns what was
// set before, for set_loop_threads.
LoopThreads use_one_loop_thread();
void set_loop_threads(LoopThreads threads);

}  // namespace fastbert
