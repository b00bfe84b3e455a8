#include "pool.h"

namespace aft {
namespace {

constexpr int SPINS = 2000;  // about a tenth of a millisecond: a sleeper is slow to wake, and the others then sleep too

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

}  // namespace

Pool::Pool(int threads) : threads_(threads), failures_(threads) {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { main(i); });
}

Pool::~Pool() {
    ending_ = true;
    advance(epoch_);
    for (auto& worker : workers_) worker.join();
}

void Pool::wait_while(const std::atomic<uint32_t>& value, uint32_t old) {
    for (int i = 0; i < SPINS; ++i) {
        if (value.load(std::memory_order_acquire) != old) return;
        pause();
    }
    // announced before it looks again: whoever changes the value afterwards sees that somebody must be woken
    sleepers_.fetch_add(1);
    while (value.load() == old) value.wait(old);
    sleepers_.fetch_sub(1);
}

void Pool::advance(std::atomic<uint32_t>& value) {
    value.fetch_add(1);
    if (sleepers_.load()) value.notify_all();
}

void Pool::barrier() {
    if (threads_ == 1) return;
    const uint32_t round = round_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == uint32_t(threads_)) {
        arrived_.store(0, std::memory_order_relaxed);
        advance(round_);
    } else {
        wait_while(round_, round);
    }
}

void Pool::run(const std::function<void(int)>& work) {
    if (threads_ == 1) {
        work(0);
        return;
    }
    work_ = &work;
    advance(epoch_);
    this->work(0);
    barrier();
    for (auto& failure : failures_)
        if (failure) {
            const auto first = failure;
            for (auto& each : failures_) each = nullptr;
            std::rethrow_exception(first);
        }
}

void Pool::work(int thread) noexcept {
    try {
        (*work_)(thread);
    } catch (...) {
        failures_[thread] = std::current_exception();
    }
}

void Pool::main(int thread) {
    for (uint32_t seen = 0;; ++seen) {
        wait_while(epoch_, seen);
        if (ending_) return;
        work(thread);
        barrier();
    }
}

}  // namespace aft
