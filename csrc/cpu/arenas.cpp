#include "cpu/arenas.h"

#include <mutex>
#include <utility>

#include "cpu/forks.h"

namespace fastbert {

Arenas::Loan::Loan(Arenas& arenas) : arenas_(arenas) {
    const std::lock_guard<std::mutex> lock(fork_safe_mutex());
    if (arenas_.idle_.empty()) {
        memory_ = std::make_unique<AlignedBytes>();
        // Room to give it back without allocating.
        arenas_.idle_.reserve(static_cast<std::size_t>(++arenas_.arenas_));
        return;
    }
    memory_ = std::move(arenas_.idle_.back());
    arenas_.idle_.pop_back();
    arenas_.idle_bytes_ -= memory_->size();
}

Arenas::Loan::~Loan() {
    const index_t bytes = memory_->size();
    const std::lock_guard<std::mutex> lock(fork_safe_mutex());
    if (arenas_.idle_bytes_ + bytes > kMostIdle) {
        arenas_.bytes_ -= bytes;
        --arenas_.arenas_;
        return;  // the arena ends with this loan, behind the lock
    }
    arenas_.idle_bytes_ += bytes;
    arenas_.idle_.push_back(std::move(memory_));
}

char* Arenas::Loan::reserve(index_t bytes) {
    const index_t before = memory_->size();
    count(-before);  // where there is no memory, the old arena is lost as well
    memory_->reserve(bytes);
    count(memory_->size());
    return memory_->data();
}

void Arenas::Loan::count(index_t bytes) {
    const std::lock_guard<std::mutex> lock(fork_safe_mutex());
    arenas_.bytes_ += bytes;
}

index_t Arenas::bytes() const {
    const std::lock_guard<std::mutex> lock(fork_safe_mutex());
    return bytes_;
}

}  // namespace fastbert
