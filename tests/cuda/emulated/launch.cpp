// Stands in for csrc/cuda/launch.cpp: the "device" is this process, so launches always go through.
#include "cuda/launch.h"

namespace fastbert::cuda {

std::string unavailable() { return ""; }
Launch::Launch(const char* op, int) : op_(op), previous_(-1) {}
Launch::~Launch() {}
void Launch::check() const {}

}  // namespace fastbert::cuda
