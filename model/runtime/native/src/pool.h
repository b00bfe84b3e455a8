// Threads that work in step. They spin briefly where they wait, then sleep: spinning without end collapses as soon as
// another process wants a processor.
#pragma once
#include <atomic>
#include <exception>
#include <functional>
#include <thread>
#include <vector>

namespace aft {

class Pool {
public:
    explicit Pool(int threads);
    ~Pool();
    int threads() const { return threads_; }
    // Call ``work(thread)`` on every thread, the caller's own as thread 0; returns when all are done. The first thread's
    // exception is thrown again here. Work with barriers in it must throw none: others would wait for it.
    void run(const std::function<void(int)>& work);
    // Wait, inside ``run``, until every thread has come here.
    void barrier();

private:
    void main(int thread);
    void work(int thread) noexcept;
    void wait_while(const std::atomic<uint32_t>& value, uint32_t old);
    void advance(std::atomic<uint32_t>& value);

    const int threads_;
    const std::function<void(int)>* work_ = nullptr;
    std::vector<std::exception_ptr> failures_;  // of the threads, in the last piece of work
    bool ending_ = false;
    alignas(64) std::atomic<uint32_t> epoch_{0};    // a new piece of work
    alignas(64) std::atomic<uint32_t> round_{0};    // a barrier has opened
    alignas(64) std::atomic<uint32_t> arrived_{0};  // threads at the barrier
    alignas(64) std::atomic<uint32_t> sleepers_{0};
    std::vector<std::thread> workers_;
};

}  // namespace aft
