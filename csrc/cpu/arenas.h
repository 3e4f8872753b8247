// Memory that passes are computed in, lent for the length of one call and kept for the next.
#pragma once

#include <memory>
#include <vector>

#include "cpu/aligned_bytes.h"

namespace fastbert {

// Safe to borrow from by several threads at once: each loan has an arena of its own.
class Arenas {
  public:
    // What is kept between calls, all together: enough for 14 000 tokens of BERT-base in int8. A
    // larger arena is new memory for every pass, which is little beside the arithmetic on it.
    static constexpr index_t kMostIdle = index_t{128} << 20;

    // An arena; given back for the next call even when this one throws.
    class Loan {
      public:
        explicit Loan(Arenas& arenas);
        ~Loan();
        Loan(const Loan&) = delete;
        Loan& operator=(const Loan&) = delete;

        char* reserve(index_t bytes);

      private:
        void count(index_t bytes);

        Arenas& arenas_;
        std::unique_ptr<AlignedBytes> memory_;
    };

    index_t bytes() const;  // of all arenas, lent ones included

  private:
    // Under fork_safe_mutex(). Idle arenas keep kMostIdle bytes together at most.
    std::vector<std::unique_ptr<AlignedBytes>> idle_;
    index_t arenas_ = 0, bytes_ = 0, idle_bytes_ = 0;
};

// Hands out offsets one after the other, each on a cache line of its own.
class OffsetAllocator {
  public:
    index_t take(index_t bytes) {
        const index_t start = used_;
        used_ += (bytes + 63) / 64 * 64;
        return start;
    }
    index_t used() const { return used_; }

  private:
    index_t used_ = 0;
};

}  // namespace fastbert
