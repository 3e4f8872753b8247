// What is made step by step, and is gone as soon as a step throws.
#pragma once

#include <memory>
#include <utility>

#include "common/check.h"

namespace fastbert {

template <typename T>
class Unfinished {
  public:
    // `owner` names what is made in error messages.
    Unfinished(const char* owner, std::unique_ptr<T> made)
        : owner_(owner), made_(std::move(made)) {}

    // Calls step(T&). Throws std::invalid_argument where it is gone, and what the step throws.
    template <typename Step>
    void with(const Step& step) {
        std::unique_ptr<T> made = taken();
        step(*made);
        made_ = std::move(made);
    }

    // What was made. Throws std::invalid_argument where it is gone.
    std::unique_ptr<T> taken() {
        if (made_ == nullptr) fail(owner_, "nothing can be added to what failed or is finished.");
        return std::move(made_);
    }

  private:
    const char* owner_;
    std::unique_ptr<T> made_;
};

}  // namespace fastbert
